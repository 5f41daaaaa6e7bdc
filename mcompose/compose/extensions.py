"""The extensions of a composed output, in the order in which they are asked."""

from __future__ import annotations

from mcompose.compose.adapters import AdapterExtension
from mcompose.compose.decoupled import DecouplingExtension
from mcompose.compose.experts.plan import ExpertExtension
from mcompose.compose.extension import Extension
from mcompose.compose.prefixes import PrefixExtension
from mcompose.compose.vision_mix.extension import VisionMixExtension

__all__ = ["EXTENSIONS"]

EXTENSIONS: tuple[Extension, ...] = (
    VisionMixExtension(),
    DecouplingExtension(),
    ExpertExtension(),
    PrefixExtension(),
    AdapterExtension(),
)
