"""What stages leave behind: folders, deltas, their order, and the full checkpoint that they export to."""
