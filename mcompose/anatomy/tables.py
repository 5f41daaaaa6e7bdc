"""The two data files of the anatomy: what was generated from transformers, and the exceptions written by hand.

``families.json`` is written by ``python -m mcompose.anatomy.generate``, ``exceptions.json`` by hand. They describe the
names of tensors; facts about a family's network and processor are in ``modeling/families.py``.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from mcompose.anatomy.family import Family, Renaming

__all__ = ["exceptions", "family_of_text", "generated", "known_family"]


DATA = Path(__file__).parent / "data"


@cache
def _load(name: str) -> dict[str, Any]:
    return json.loads((DATA / name).read_bytes())


def exceptions() -> dict[str, Any]:
    """Returns the facts that meta models do not show, written by hand."""
    return _load("exceptions.json")


def generated() -> dict[str, Any]:
    """Returns the facts from meta models: families, sub-models, defaults."""
    return _load("families.json")


@cache
def known_family(signature: str) -> Family | None:
    """Returns the family of a signature; None when it is not in the file."""
    data = generated()["families"].get(signature)
    if data is None:
        return None
    table = generated()["renamings"]
    return Family.from_json(data, {index: Renaming(**table[index]) for index in data["renamings"]})


def family_of_text(text_type: str) -> Family | None:
    """Returns a family whose language model has this type, for types that never occur alone (``qwen2_vl_text``)."""
    for signature, data in generated()["families"].items():
        if data["text_type"] == text_type:
            return known_family(signature)
    return None
