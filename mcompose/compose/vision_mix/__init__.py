"""Mixed image encoders of a composed output: opened, measured and put together from recipe and headers."""
