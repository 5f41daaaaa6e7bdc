"""What the reports compare, every variant as a recipe that a user could run by hand.

All variants of a report see the same data in the same order, for as many steps. The encoders are the family's: the
general one with its trained projector (32 pixels), and those for charts (Pix2Struct), tables (DINOv2) and documents
(SigLIP).

Paper: Lin et al. 2023, arXiv:2311.07575; Liu et al. 2024, arXiv:2402.05935; Wu et al. 2023, arXiv:2312.00968.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mcompose.lab import LabFamily
from mcompose.pipeline.lab.relative import local_reference, relative_path
from mcompose.whole_files import write_text

__all__ = ["SMOLA", "SPHINX", "Variant", "write_recipe"]

_OWN = {"of": ["own"]}
_SIDE = 32
"""What the general encoder sees."""


@dataclass(frozen=True)
class Variant:
    """One way to see and to train.

    Args:
        name: In tables.
        streams: What the language model reads of a view.
        views: How a picture is cut; ``size`` is the general encoder's.
        adapters: ``compose.adapters``.
        train: What stage 2 trains.
        lora: ``lora`` of stage 2.
        rate: Learning rate of stage 2.
    """

    name: str
    streams: tuple[Mapping[str, Any], ...] = (_OWN,)
    views: Mapping[str, Any] = field(default_factory=dict)
    adapters: Mapping[str, Any] = field(default_factory=dict)
    train: tuple[str, ...] = ("projectors", "llm")
    lora: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 5e-4

    @property
    def slug(self) -> str:
        """In names of files."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)

    @property
    def encoders(self) -> list[str]:
        """The encoders that the streams name, in order."""
        return list(dict.fromkeys(name for stream in self.streams for name in stream["of"]))


_CHANNEL = {"of": ["table", "document"], "grid": 8, "projector": "linear_norm"}
_SEQUENCE = (
    {"of": ["table"], "projector": "linear_norm"},
    {"of": ["document"], "projector": "linear_norm"},
)
_CHARTS = {"of": ["chart"], "projector": "linear_norm"}
_CORNER = {"align": "corner"}

SPHINX = (
    Variant("one encoder"),
    Variant("channel", (_OWN, _CHANNEL)),
    Variant("sequence", (_OWN, *_SEQUENCE)),
    Variant("both", (_OWN, _CHANNEL, _CHARTS)),
    Variant("2x2", views={"tiles": "2x2", **_CORNER}),
    Variant("3x3", views={"tiles": "3x3", **_CORNER}),
    Variant("3x3, no skip", views={"tiles": "3x3", "skip": False, **_CORNER}),
    Variant("by aspect ratio", views={"tiles": "auto", "max_tiles": 9, **_CORNER}),
)
"""Encoders at one scale, then scales of one encoder."""

_SEES = (_OWN, *_SEQUENCE)
_SETS = {"mm": {}, "mv": {"modalities": ["image"]}, "mt": {"modalities": ["text"]}}


def _experts(count: int, rank: int = 4, mode: str = "token", names: tuple[str, ...] = ("mm",)) -> dict[str, Any]:
    return {name: {**_SETS[name], "experts": count, "rank": rank, "mode": mode} for name in names}


def _adapted(name: str, adapters: Mapping[str, Any]) -> Variant:
    return Variant(name, _SEES, adapters=adapters, train=("adapters",), rate=2e-3)


SMOLA = (
    Variant("frozen", _SEES, train=()),
    Variant("full", _SEES, train=("language",)),
    Variant("lora", _SEES, train=(), lora={"language": {"rank": 72, "alpha": 72}}, rate=2e-3),
    _adapted("mm 4", _experts(4)),
    _adapted("mm 16", _experts(16)),
    _adapted("mm 48", _experts(48)),
    _adapted("mm+mv+mt 16", _experts(16, names=("mm", "mv", "mt"))),
    _adapted("mm 16, prefix", _experts(16, mode="prefix")),
    _adapted("mm 16, merged", _experts(16, mode="merged")),
)
"""Ways to train the language model behind encoders whose projectors are trained; ``lora`` has the parameters of
``mm 16``: 16 experts of rank 4 and their router are as many numbers as factors of rank 72 where a linear is square."""


def write_recipe(family: LabFamily, variant: Variant, path: Path, *, steps: tuple[int, int]) -> Path:
    """Writes a variant's recipe.

    Args:
        family: The family ``pictures``.
        variant: The variant.
        path: Where to.
        steps: Of the two stages.

    Returns:
        ``path``.
    """
    seed = int(family.figures["seed"])
    mix = {
        "name": "eyes",
        "encoders": {name: _encoder(family, name, path) for name in variant.encoders},
        "streams": [dict(stream) for stream in variant.streams],
        "views": {"size": _SIDE, **variant.views},
    }
    records = family.folder / "data" / "train"
    domains = [str(domain) for domain in family.figures["domains"]]
    data = [{"path": relative_path(records / f"{one}.jsonl", path), "domain": one} for one in domains]
    common = {
        "data": data, "batch_size": 32, "warmup": 0.03, "feature_cache": True, "precision": "float32", "seed": seed,
    }  # fmt: skip
    stages: dict[int, Any] = {1: {"train": ["projectors"], "lr": 2e-3, "steps": steps[0], **common}}
    if variant.train or variant.lora:
        parts = {"train": list(variant.train)} | ({"lora": dict(variant.lora)} if variant.lora else {})
        stages[2] = {**parts, "lr": variant.rate, "steps": steps[1], **common}
    recipe = {
        "schema": 1,
        "name": f"{family.name}-{variant.slug}",
        "sources": [{"name": "general", "model": local_reference(family.base, path), "modalities": ["image"]}],
        "merge": {"method": "naivemc", "dtype": "float32", "seed": seed},
        "compose": {"vision_mix": mix} | ({"adapters": dict(variant.adapters)} if variant.adapters else {}),
        "align": {"stages": stages},
        "output": {"dir": variant.slug, "format": "composed"},
    }
    write_text(path, yaml.safe_dump(recipe, sort_keys=False))
    return path


def _encoder(family: LabFamily, name: str, path: Path) -> dict[str, Any]:
    if name == "own":
        return {"source": "general"}
    return {"encoder": local_reference(family.donors[name], path)}
