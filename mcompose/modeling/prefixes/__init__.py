"""Learned vectors around each media item."""
