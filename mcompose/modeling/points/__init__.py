"""A small point-cloud model: configuration, network and processor."""
