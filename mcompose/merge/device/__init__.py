"""Merging on another device: weights streamed through it in double buffers."""
