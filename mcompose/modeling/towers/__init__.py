"""Towers: native base models without their language model, and the features that they give."""
