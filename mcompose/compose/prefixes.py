"""Learned vectors around media items that sources bring with their towers, as an extension of a composed output.

Their tensors are the towers'; here are the counts and tokens by which network and processor know them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcompose.compose.extension import Addition, Draft, Extension
from mcompose.compose.towers import vectors_around

__all__ = ["PrefixExtension", "Prefixes"]


@dataclass(frozen=True)
class Prefixes(Addition):
    """Learned vectors around items.

    Args:
        around: ``prefix_tokens`` and ``suffix_tokens``, each modality to a number of vectors.
    """

    around: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Any])

    def config_fields(self, tokenizer: Any) -> dict[str, Any]:
        """Counts of vectors, and ids of the tokens that stand for them."""
        from mcompose.modeling import prefix_fields  # noqa: PLC0415 - torch, for composed outputs only

        return prefix_fields(tokenizer, **self.around)

    def processor_fields(self) -> dict[str, Any]:
        """Returns the same counts."""
        return dict(self.around)


class PrefixExtension(Extension):
    """Keeps the vectors of the towers that an output has."""

    def plan(self, draft: Draft) -> Prefixes:
        """Counts the vectors of the output's towers."""
        return Prefixes(around=vectors_around(draft.towers))
