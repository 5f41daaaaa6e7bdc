"""The ``align`` section of a recipe: stages, their data sets, presets, masking and routing, and preferences."""
