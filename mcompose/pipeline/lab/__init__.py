"""`mcompose lab make` and `mcompose lab report`."""
