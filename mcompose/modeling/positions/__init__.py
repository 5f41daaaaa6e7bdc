"""Positions and attention masks that a native family needs beyond counting tokens in a line."""
