"""Maths: the merge methods. The imports below are the catalogue; importing it loads neither torch nor Numba.

One file a method (or a tight family), one pure function a method, one decorator. To read one, start with `linear`,
then `slerp` (`blend` is what they share), then `ties` (`prune` is what it shares with DARE, breadcrumbs and DELLA).
"""

from mcompose.methods.call import merge_tensors, merge_whole
from mcompose.methods.linear import linear, naivemc
from mcompose.methods.method import METHODS, REQUIRED, Method, Parameter, Program, Survey, TensorTask
from mcompose.methods.settings import arguments_for
from mcompose.methods.ties import ties, ties_peft

__all__ = [
    "METHODS",
    "REQUIRED",
    "Method",
    "Parameter",
    "Program",
    "Survey",
    "TensorTask",
    "arguments_for",
    "linear",
    "merge_tensors",
    "merge_whole",
    "naivemc",
    "ties",
    "ties_peft",
]
