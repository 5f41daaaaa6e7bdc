"""Soft mixtures of low-rank experts beside the linears of a composition."""
