"""The fields of ``config.json`` about learned vectors around media items. Needs no torch.

``prefix_tokens`` and ``suffix_tokens``: modality -> number of vectors before and after each of its items;
``prefix_token_ids`` and ``suffix_token_ids``: modality -> id of the token that stands for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ..configuration.extension import ConfigExtension

__all__ = ["PREFIX_SIDES", "PrefixFields", "check_prefixes", "prefix_ids"]

PREFIX_SIDES = ("prefix", "suffix")


class PrefixFields(ConfigExtension):
    """The fields of vectors around items."""

    fields: ClassVar[Mapping[str, Any]] = {
        f"{side}_{what}": {} for what in ("tokens", "token_ids") for side in PREFIX_SIDES
    }

    def check(self, config: Any) -> None:
        """Refuses vectors around items that this composition cannot have; see :func:`check_prefixes`."""
        check_prefixes(config, **{key: getattr(config, key) for key in self.fields})


def check_prefixes(
    config: Any,
    *,
    prefix_tokens: Mapping[str, int],
    suffix_tokens: Mapping[str, int],
    prefix_token_ids: Mapping[str, int],
    suffix_token_ids: Mapping[str, int],
) -> None:
    """Refuses vectors around items that a composition cannot have.

    Args:
        config: The ``ComposedConfig``.
        prefix_tokens: Modality -> vectors before each of its items.
        suffix_tokens: Modality -> vectors after each of its items.
        prefix_token_ids: Modality -> id of its prefix token.
        suffix_token_ids: Modality -> id of its suffix token.

    Raises:
        ValueError: Naming the modality.
    """
    taken = {config.placeholder_id(modality): modality for modality in config.modalities}
    sides = {"prefix": (prefix_tokens, prefix_token_ids), "suffix": (suffix_tokens, suffix_token_ids)}
    for side, (counts, ids) in sides.items():
        for modality, count in counts.items():
            if config.served_by(modality) is None:
                raise ValueError(f"{side}_tokens names {modality!r}, and no source of this composition serves it.")
            if not isinstance(count, int) or count < 1 or modality not in ids:
                raise ValueError(f"{modality!r} needs a number of {side} vectors and a {side} token id.")
        for modality, index in ids.items():
            if modality not in counts or index in taken:
                raise ValueError(f"The {side} token id {index} of {modality!r} is taken, or has no vectors.")
            taken[index] = modality


def prefix_ids(config: Any) -> Iterator[tuple[str, str, int]]:
    """Yields modality, side and token id of all vectors that a configuration names."""
    for side in PREFIX_SIDES:
        for modality, index in getattr(config, f"{side}_token_ids").items():
            yield modality, side, index
