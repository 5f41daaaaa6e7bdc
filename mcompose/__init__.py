"""mcompose: makes one multimodal model out of several that already exist.

Importing the package is free of torch and transformers; see ``README.md`` for the order in which to read the code.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
