"""Shared code of the merge methods: declaration and calls, pruning, blending, singular vectors, compiled kernels."""
