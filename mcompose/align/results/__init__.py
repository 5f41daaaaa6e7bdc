"""Results of stages: folder and delta of a stage, lineage of stages, export as a full checkpoint."""
