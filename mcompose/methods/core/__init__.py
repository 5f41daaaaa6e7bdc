"""What the methods share: how one is declared and called, pruning, blending, and the compiled kernels."""
