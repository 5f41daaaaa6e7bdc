"""Stages with domain experts: the router's loss and fit, and masking of general tokens (GSCM)."""
