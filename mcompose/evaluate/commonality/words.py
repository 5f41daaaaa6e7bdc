"""Words of captions: split, stemmed by a few plain rules, and freed of those that say nothing about what is shown."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["content_words"]

_WORD: Final = re.compile(r"[^\W\d_]+")
_STOP_WORDS: Final = """
    a an the this that these those some any each every all both several many few one two three four five six other
    another and or but nor so yet if then than as of in on at by to from with without into onto over under above
    below between through during before after behind beside besides near next around along across against among up
    down out off away back front top bottom side left right middle center background foreground is are was were be
    been being am do does did has have had having can could will would shall should may might must not no it its he
    she they them his her their him we you your our my me us who which what where when why how there here while
    very quite too also just only still even more most less least such same own it image picture photo photograph
    video clip audio sound recording point cloud model object objects thing things show shows showing shown see
    seen seems appear appears look looks looking like make makes making made get gets getting put puts take takes
    taking use uses using used something someone somebody person people scene view shape type kind part parts piece
    group set number lot various different large small big little
"""
_STOP: Final = frozenset(_STOP_WORDS.split())


def content_words(caption: str) -> dict[str, str]:
    """Returns what a caption says.

    Args:
        caption: In English.

    Returns:
        Stem to the word as it stands there, in lower case, in order; words of two letters or less are left out.
    """
    words: dict[str, str] = {}
    for match in _WORD.finditer(caption.lower()):
        if len(match[0]) > 2 and match[0] not in _STOP:
            words.setdefault(_stem(match[0]), match[0])
    return words


def _stem(word: str) -> str:
    """Joins "dog" with "dogs" and "bark" with "barks" and "barking"; a key, not a word."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= 3 and re.search("[aeiouy]", stem):
            return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz" else stem
    return word
