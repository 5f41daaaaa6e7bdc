"""The `align` section of a recipe: stages, their data, presets, experts and preferences."""
