"""The kinds of media that models take beside text, and what they are called where mcompose meets them.

`modeling` has a list of its own, in the order of its token types, because it must load without mcompose; a test holds
that both name the same modalities.
"""

from __future__ import annotations

from typing import Final

__all__ = ["EXPERT_MODALITIES", "MODALITIES", "PLACEHOLDERS", "RELEASED_NAMES"]

MODALITIES: Final = ("image", "audio", "video", "points")
"""In the order in which ledgers, reports and claims list them."""

PLACEHOLDERS: Final = {modality: f"<{modality}>" for modality in MODALITIES}
"""What stands for one item in the text of a prompt."""

EXPERT_MODALITIES: Final = ("image", "audio")
"""Modalities beside whose items domain experts can stand."""

RELEASED_NAMES: Final = {"vision": "image", "audio": "audio", "video": "video", "point": "points"}
"""What the files released with arXiv 2402.12750 (donors and MCUB) call a modality, to its name here."""
