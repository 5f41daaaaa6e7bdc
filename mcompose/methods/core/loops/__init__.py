"""The inner loops of merging, in the subset of Python that Numba compiles.

The idea: one pass over a chunk. A loop takes the raw bytes of every source, widens a *tile* of each to float32, does
all arithmetic while the tile is in the first-level cache, rounds once and writes raw bytes. Sources may have different
element types, told by a code, so that no loop exists twice.

Modules here import Numba and are imported only when machine code must be made; `mcompose.methods.core.compiled` keeps
it on disk, and `mcompose.methods.core.kernels` is how the rest of the package calls it. A loop gets addresses, not
arrays, and allocates nothing: what it compiles to is plain machine code that needs neither Numba nor Python to run.
"""
