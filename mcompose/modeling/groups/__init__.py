"""Decoupled parameter groups (DAMC): linears with one set of weights per modality."""
