"""The recipe: what to make, read from YAML into frozen values.

Imports neither torch nor numpy, so that ``plan`` and ``--help`` stay instant.

* ``document`` reads YAML and keeps the line of every key; ``fields`` and ``values`` hold the field types.
* ``schema`` is the recipe; its sections are ``compose`` with ``experts``, and the folder ``align`` (stages, data sets,
  presets, masking and routing, preferences).
* ``rules`` checks the keys against each other, ``check`` the merge method and its parameters; ``field_errors`` turns
  what pydantic reports into one sentence with file and line.
* ``load`` reads a recipe file; the folder ``mergekit`` translates mergekit's YAML into a recipe.
* ``select`` gives the settings of one tensor, ``slices`` the layers that it comes from; ``resolve`` writes the resolved
  recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcompose.doors import lazy_names
from mcompose.recipe.adapters import AdapterSpec
from mcompose.recipe.align.experts import Masking, RouterTraining, Tiling
from mcompose.recipe.align.preference import Preference
from mcompose.recipe.align.stages import AlignSpec, GroupsSpec, LoraSpec, Stage, part_role
from mcompose.recipe.check import MethodLike, ParameterLike, check_method
from mcompose.recipe.compose import ComposeSpec
from mcompose.recipe.experts import Expert, Onnx, Projector, Router
from mcompose.recipe.fields import UNION
from mcompose.recipe.load import LoadedRecipe, load_recipe, parse_recipe
from mcompose.recipe.resolve import recipe_text, resolve, resolve_text
from mcompose.recipe.schema import (
    Match,
    MergeSpec,
    OutputSpec,
    Override,
    Recipe,
    Resolved,
    Slice,
    SliceSource,
    Source,
)
from mcompose.recipe.select import Setting, settings_for
from mcompose.recipe.slices import SlicePlace, count_layers, drop_whole_slice, find_slice
from mcompose.recipe.values import Choice

if TYPE_CHECKING:
    from mcompose.recipe.align.datasets import INSTRUCTION, DatasetSpec
    from mcompose.recipe.align.tasks import BoxForm, Wording, builtin_tasks, read_templates
from mcompose.recipe.vision_mix import MixedEncoder, Stream, VisionMix

__all__ = [
    "INSTRUCTION",
    "UNION",
    "AdapterSpec",
    "AlignSpec",
    "BoxForm",
    "Choice",
    "ComposeSpec",
    "DatasetSpec",
    "Expert",
    "GroupsSpec",
    "LoadedRecipe",
    "LoraSpec",
    "Masking",
    "Match",
    "MergeSpec",
    "MethodLike",
    "MixedEncoder",
    "Onnx",
    "OutputSpec",
    "Override",
    "ParameterLike",
    "Preference",
    "Projector",
    "Recipe",
    "Resolved",
    "Router",
    "RouterTraining",
    "Setting",
    "Slice",
    "SlicePlace",
    "SliceSource",
    "Source",
    "Stage",
    "Stream",
    "Tiling",
    "VisionMix",
    "Wording",
    "builtin_tasks",
    "check_method",
    "count_layers",
    "drop_whole_slice",
    "find_slice",
    "load_recipe",
    "parse_recipe",
    "part_role",
    "read_templates",
    "recipe_text",
    "resolve",
    "resolve_text",
    "settings_for",
]

_HOME = {
    "DatasetSpec": "align.datasets",
    "INSTRUCTION": "align.datasets",
    "BoxForm": "align.tasks",
    "Wording": "align.tasks",
    "builtin_tasks": "align.tasks",
    "read_templates": "align.tasks",
}
"""Names that are loaded on first use, and the file of each: other rooms need them in few places."""


__getattr__ = lazy_names(__name__, _HOME)
