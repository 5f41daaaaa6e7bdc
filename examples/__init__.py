"""Programs that use mcompose as its users would."""
