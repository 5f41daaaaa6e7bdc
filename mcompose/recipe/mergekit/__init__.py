"""Translates mergekit's YAML files into recipes: their schema, their settings, and the conversion."""
