"""mergekit's YAML files, translated into recipes."""
