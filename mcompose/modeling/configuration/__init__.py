"""Configuration of a composed model, and the native configurations inside it."""
