"""`mcompose search`: merge coefficients by validation score, or by consistency without labels."""
