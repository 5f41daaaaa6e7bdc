"""What the parts of a model are called: in anatomies, in recipes and in ledgers.

A name is a role (``language``), or a role and what qualifies it: ``projector:sees`` (a source), ``expert:charts`` (an
expert), ``group:image`` (a modality).
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "EMBEDDING",
    "ENCODER",
    "EXPERT",
    "GROUP",
    "HEAD",
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
TOWER_PARTS: Final = (ENCODER, PROJECTOR)
EXPERT, ROUTER, SEPARATORS, MASK = "expert", "router", "separators", "mask"
"""Parts of composed checkpoints with domain experts: their encoders, what chooses among them, the two vectors around an
expert's, and the one that stands for a hidden token. An expert's projector is a ``projector``."""
GROUP: Final = "group"
"""Parameters of composed checkpoints that are decoupled by modality: ``group:image`` is what image tokens use instead
of the language model's own linears, ``group:text`` the low-rank part of the text's. Recipes may say ``groups``."""
ORIGIN: Final = "origin"
"""What low-rank groups add to."""


def qualified(role: str, which: str) -> str:
    """Returns the name of a part.

    Args:
        role: Its role.
        which: The source, expert or modality that it belongs to; empty where a role has one part.
    """
    return f"{role}:{which}" if which else role
