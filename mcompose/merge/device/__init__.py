"""Merging on a torch device: weights are streamed through the device with double buffers."""
