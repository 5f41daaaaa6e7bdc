"""Generates the few Python files that travel with a checkpoint from the many that this folder holds.

In the source, one file holds one thing. Into a checkpoint go at most six files under Hugging Face's usual names:
``configuration_``, ``modeling_`` and ``processing_mcompose.py``, and the same three ``_points.py``. Each takes what its
root files import, directly or not, and what no earlier file holds; the first of each three also takes what the other
two both need, so that a processor never imports a network. A generated file has the imports of all its sources at the
top, then one section per source file, behind what it needs, with the text of the source unchanged.

One namespace replaces many, so a name must mean one thing in a generated file. What would not keep its meaning is
refused here, when the files are made: two sources that give one name two meanings, a name of Python's own, sources
that import each other in a circle, and imports that cannot be merged by moving whole lines.

This folder and ``registration.py`` stay in the package.
"""

from .generate import bundle_sources, generate_files, write_files

__all__ = ["bundle_sources", "generate_files", "write_files"]
