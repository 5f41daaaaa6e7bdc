"""The merge methods. The imports below fill the catalogue; importing it loads neither torch nor Numba.

Each method is one pure function with one decorator; each file has one method or a few close variants. The folder
``core`` has what they share: declaration and settings, pruning, blending, singular vectors, random numbers and the
compiled kernels. To read the code, start with ``linear``, then ``slerp`` (with ``core/blend``), then ``ties`` (with
``core/prune``, which DARE, breadcrumbs and DELLA use too).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcompose.doors import lazy_names
from mcompose.methods.breadcrumbs import breadcrumbs, breadcrumbs_ties
from mcompose.methods.core import kernels
from mcompose.methods.core.call import merge_tensors, merge_whole
from mcompose.methods.core.method import METHODS, REQUIRED, Method, Parameter, Program, Survey, TensorTask
from mcompose.methods.core.settings import arguments_for
from mcompose.methods.damc import damc
from mcompose.methods.dare import dare_linear, dare_ties
from mcompose.methods.della import della, della_linear
from mcompose.methods.iso_c import iso_c
from mcompose.methods.karcher import karcher
from mcompose.methods.linear import linear, naivemc
from mcompose.methods.model_stock import model_stock
from mcompose.methods.optmerge import optmerge
from mcompose.methods.passthrough import passthrough
from mcompose.methods.slerp import nuslerp, slerp
from mcompose.methods.ssam import ssam
from mcompose.methods.swudi import aswudi, swudi
from mcompose.methods.task_arithmetic import task_arithmetic
from mcompose.methods.ties import ties, ties_peft
from mcompose.methods.ties_global import ties_global
from mcompose.methods.tsv import tsv
from mcompose.methods.weight_mix import weight_mix
from mcompose.methods.wudi import wudi

if TYPE_CHECKING:
    from mcompose.methods.core.low_rank import Factors, factorise, shorten
    from mcompose.methods.core.randomness import address, uniforms_from
    from mcompose.methods.damc import NOTHING
    from mcompose.methods.robustmerge import robust_merge

__all__ = [
    "METHODS",
    "NOTHING",
    "REQUIRED",
    "Factors",
    "Method",
    "Parameter",
    "Program",
    "Survey",
    "TensorTask",
    "address",
    "arguments_for",
    "aswudi",
    "breadcrumbs",
    "breadcrumbs_ties",
    "damc",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "factorise",
    "iso_c",
    "karcher",
    "kernels",
    "linear",
    "merge_tensors",
    "merge_whole",
    "model_stock",
    "naivemc",
    "nuslerp",
    "optmerge",
    "passthrough",
    "robust_merge",
    "shorten",
    "slerp",
    "ssam",
    "swudi",
    "task_arithmetic",
    "ties",
    "ties_global",
    "ties_peft",
    "tsv",
    "uniforms_from",
    "weight_mix",
    "wudi",
]

_HOME = {
    "Factors": "core.low_rank",
    "NOTHING": "damc",
    "address": "core.randomness",
    "factorise": "core.low_rank",
    "robust_merge": "robustmerge",
    "shorten": "core.low_rank",
    "uniforms_from": "core.randomness",
}
"""Names that are loaded on first use, and the file of each: other rooms need them in few places."""


__getattr__ = lazy_names(__name__, _HOME)
