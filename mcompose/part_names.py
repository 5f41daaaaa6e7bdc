"""Names of a model's parts, in anatomies, recipes and ledgers.

A name is a role (``language``), or a role and its owner: ``projector:sees`` (a source), ``expert:charts`` (an expert),
``group:image`` (a modality).
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ADAPTER",
    "EMBEDDING",
    "ENCODER",
    "EXPERT",
    "GROUP",
    "HEAD",
    "HEAD_NAME",
    "LANGUAGE",
    "LANGUAGE_PARTS",
    "MASK",
    "ORIGIN",
    "PROJECTOR",
    "ROUTER",
    "SEPARATORS",
    "SOURCE_PARTS",
    "TOWER_PARTS",
    "qualified",
]

LANGUAGE, EMBEDDING, HEAD, ENCODER, PROJECTOR = SOURCE_PARTS = (
    "language",
    "embedding",
    "head",
    "encoder",
    "projector",
)
"""Parts that every multimodal model has."""
LANGUAGE_PARTS: Final = (LANGUAGE, EMBEDDING, HEAD)
HEAD_NAME: Final = "lm_head.weight"
"""Name of the head's table in every source, whatever its files call it."""
TOWER_PARTS: Final = (ENCODER, PROJECTOR)
EXPERT, ROUTER, SEPARATORS, MASK = "expert", "router", "separators", "mask"
"""Parts of composed checkpoints with domain experts: the experts' encoders, the routers, the two vectors around an
expert's tokens, and the vector of a hidden token. An expert's projector is a ``projector``."""
ADAPTER: Final = "adapter"
"""Soft mixtures of low-rank experts: ``adapter:mm`` is one set, beside all of its linears."""
GROUP: Final = "group"
"""Parameters of composed checkpoints that are decoupled by modality: ``group:image`` is used for image tokens instead
of the language model's linear layers, ``group:text`` is the low-rank part for text. Recipes may also write
``groups``."""
ORIGIN: Final = "origin"
"""Weights of the linear layers that low-rank groups are added to."""


def qualified(role: str, which: str) -> str:
    """Returns the name of a part.

    Args:
        role: Role of the part.
        which: Source, expert or modality that the part belongs to; empty where a role has only one part.
    """
    return f"{role}:{which}" if which else role
