"""A family of checkpoints: how its keys are renamed, and which part each name belongs to.

transformers renames the keys of a file by an ordered list of regular expressions before it looks for the parameter.
This list, and the paths of decoder, encoders and other modules, are all that is needed to split a checkpoint. Both are
plain data, so a family that transformers described once (``meta.py``) is read from a file without torch. The generated
file, the user's cache and a new meta model all use the same code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from mcompose.anatomy.part import EMBEDDING, ENCODER, HEAD, LANGUAGE, UNUSED, Slot

__all__ = ["BUFFERS", "NOT_LOADED", "Family", "Renaming", "claim"]

NOT_LOADED = "transformers does not load it for this class"
"""Reason of tensors that a release ships for other programs, such as heads that predict several tokens ahead."""

BUFFERS = re.compile(
    r"(?:^|\.)(?:rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|inv_freq|position_ids|masked_bias|attn\.bias|attention\.bias)$"
)
"""Computed values in old files; transformers ignores them where the class does not have such a parameter."""


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@dataclass(frozen=True)
class Renaming:
    r"""One step from a file's spelling to the spelling in memory.

    Args:
        find: Regular expression whose outer groups are named ``g0``, ``g1``...; the first matching branch is used.
        replace: Replacement of the match; ``\1`` stands for the first group inside the matching branch.
        scope: Path of the sub-model that the step applies to; None for the whole model. Other keys are unchanged.
        base: Name of the base model, which may stand before the scope in a key.
    """

    find: str
    replace: str
    scope: str | None = None
    base: str = ""

    def _head(self, key: str) -> str | None:
        if self.scope is None:
            return ""
        scope = f"{self.scope}." if self.scope else ""
        base = f"{self.base}." if self.base else ""
        return next((head for head in (base + scope, scope) if key.startswith(head)), None)

    def apply(self, key: str) -> str:
        """Returns the key after this step."""
        head = self._head(key)
        if head is None:
            return key
        rest = key[len(head) :]
        match = _compiled(self.find).search(rest)
        if match is None:
            return key
        replacement = self.replace
        if "\\1" in replacement:
            branch = next(name for name, text in match.groupdict().items() if text is not None)
            replacement = replacement.replace("\\1", match.group(match.re.groupindex[branch] + 1))
        return head + rest.replace(match.group(0), replacement, 1)


@dataclass(frozen=True)
class Family:
    """Description of all checkpoints with the same types of model and sub-models, from transformers.

    Args:
        model_type: transformers' model type of the part that generates text.
        architecture: Name of the class.
        base: Attribute of the class that holds the base model (``model``); keys in files may have it or not.
        decoder: Path of the decoder in memory (``model.language_model``).
        text_type: Model type of the language model.
        renamings: Steps from a file's key to the path in memory, in order.
        parts: Path in memory to part. For a key, the longest path that it begins with is used.
        layers: Paths of the lists of layers.
        modalities: Modalities that the class accepts besides text.
        refusal: Why checkpoints of this family cannot be a source; empty when they can.
        unused: Prefix of keys in files to the reason why such tensors are left out.
        ignored: Regular expressions of keys that the class does not load, and of which it has no parameter.
    """

    model_type: str
    architecture: str
    base: str = ""
    decoder: str = ""
    text_type: str = ""
    renamings: tuple[Renaming, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    refusal: str = ""
    unused: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @cached_property
    def _layer_pattern(self) -> re.Pattern[str]:
        paths = "|".join(re.escape(path) for path in sorted(self.layers, key=len, reverse=True))
        return re.compile(rf"^(?:{paths})\.(\d+)\." if paths else r"(?!)")

    @cached_property
    def slots(self) -> dict[str, Slot | None]:
        """Cache of the slots of keys, because sources of one family share most of their keys."""
        return {}

    @property
    def head_key(self) -> str:
        """Key of the head in files."""
        path = next((path for path, part in self.parts.items() if part == HEAD), "lm_head")
        return f"{path}.weight"

    def with_first(self, first: Renaming, *, unused: Mapping[str, str]) -> Family:
        """Returns the same family with one more renaming before all others."""
        return replace(self, renamings=(first, *self.renamings), unused={**self.unused, **unused})

    def path_of(self, key: str) -> str:
        """Returns the path in memory of a file's key, with the base model's name added or removed to find a part."""
        path = key
        for renaming in self.renamings:
            path = renaming.apply(path)
        if not self.base:
            return path
        head = self.base + "."
        if path.startswith(head) and self.owner(path[len(head) :]):
            return path[len(head) :]
        return head + path if self.owner(head + path) else path

    def owner(self, path: str) -> str:
        """Returns the longest path in ``parts`` that contains a path; empty when there is none."""
        while path:
            if path in self.parts:
                return path
            path = path.rpartition(".")[0]
        return ""

    def layer_of(self, path: str) -> int | None:
        """Returns the index of the layer that contains a path; None outside the layers."""
        match = self._layer_pattern.match(path)
        return int(match.group(1)) if match else None

    def name_of(self, path: str, *, part: str, owner: str) -> str:
        """Returns the name that all sources share; see ``part.py``."""
        if part == HEAD:
            return "lm_head" + path[len(owner) :]
        if part in (LANGUAGE, EMBEDDING):
            return path.removeprefix(self.decoder + ".")
        return path.removeprefix(self.base + ".") if self.base else path

    def is_ignored(self, key: str, path: str) -> bool:
        """Returns whether the class leaves a file's key unread on purpose; its layers are never meant.

        Args:
            key: The key in the file.
            path: Its path in memory.
        """
        if self.layer_of(path) is not None:
            return False
        return any(_compiled(pattern).search(name) for pattern in self.ignored for name in (key, path))

    def to_json(self, renamings: Sequence[Renaming]) -> dict[str, Any]:
        """Returns the family as plain data; renamings are indices into a table that all families share."""
        out: dict[str, Any] = {
            "model_type": self.model_type,
            "architecture": self.architecture,
            "base": self.base,
            "decoder": self.decoder,
            "text_type": self.text_type,
            "renamings": [renamings.index(step) for step in self.renamings],
            "parts": dict(self.parts),
            "layers": list(self.layers),
            "modalities": list(self.modalities),
        }
        if self.refusal:
            out["refusal"] = self.refusal
        if self.unused:
            out["unused"] = dict(self.unused)
        if self.ignored:
            out["ignored"] = list(self.ignored)
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any], renamings: Sequence[Renaming] | Mapping[int, Renaming]) -> Family:
        """Reads what ``to_json`` wrote."""
        fields = dict(data)
        fields["renamings"] = tuple(renamings[index] for index in data["renamings"])
        fields["layers"] = tuple(data["layers"])
        fields["modalities"] = tuple(data["modalities"])
        fields["ignored"] = tuple(data.get("ignored", ()))
        return cls(**fields)


def claim(family: Family, keys: Sequence[str]) -> tuple[dict[str, Slot], list[str]]:
    """Assigns every key of a checkpoint to a slot.

    Args:
        family: Family of the checkpoint.
        keys: Keys in the files, in order.

    Returns:
        Key to slot for the keys that have one, and the list of keys without a slot.
    """
    slots: dict[str, Slot] = {}
    orphans: list[str] = []
    for key in keys:
        if key not in family.slots:
            family.slots[key] = _slot(family, key)
        slot = family.slots[key]
        if slot is None:
            orphans.append(key)
        else:
            slots[key] = slot
    return slots, orphans


def _slot(family: Family, key: str) -> Slot | None:
    for prefix, reason in family.unused.items():
        if key.startswith(prefix):
            return Slot(key, key, UNUSED, reason=reason)
    path = family.path_of(key)
    if BUFFERS.search(path) and path not in family.parts:
        return Slot(key, key, UNUSED, reason="computed by the model, not learned")
    if family.is_ignored(key, path):
        return Slot(key, key, UNUSED, reason=NOT_LOADED)
    owner = family.owner(path)
    if not owner:
        return None
    part = family.parts[owner]
    if part == UNUSED:
        return Slot(key, key, UNUSED, reason="not used to answer in text")
    layer = family.layer_of(path) if part in (LANGUAGE, ENCODER) else None
    return Slot(key, family.name_of(path, part=part, owner=owner), part, layer)
