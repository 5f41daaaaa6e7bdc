"""The modalities that models accept besides text, and their names.

``modeling`` has its own list, in the order of its token types, because it must be importable without mcompose; a test
checks that both lists contain the same modalities.
"""

from __future__ import annotations

from typing import Final

__all__ = ["EXPERT_MODALITIES", "MODALITIES", "PLACEHOLDERS", "RELEASED_NAMES"]

MODALITIES: Final = ("image", "audio", "video", "points")
"""All modalities, in the order in which ledgers and reports list them."""

PLACEHOLDERS: Final = {modality: f"<{modality}>" for modality in MODALITIES}
"""Modality to the placeholder of one item in the text of a prompt."""

EXPERT_MODALITIES: Final = ("image", "audio")
"""Modalities that can have domain experts."""

RELEASED_NAMES: Final = {"vision": "image", "audio": "audio", "video": "video", "point": "points"}
"""Modality names in the files released with arXiv 2402.12750 (donors and MCUB), to the names here."""
