"""Open answers made comparable, as the VQA evaluation does it on both sides before it asks for equality.

Lower case; question marks, commas and full stops that end something go; other punctuation goes where it adjoins a space
and becomes a space where it joins two words; number words up to ten become digits; articles go; contractions get their
apostrophe back. No maintained package offers it, so it is written here from the published description, with hand-made
cases. Apostrophes and colons stay, since possessives and times need them.

Paper: VQA, arXiv 1505.00468; used for MUSIC-AVQA by arXiv 2402.12750.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["normalise_answer"]

_MARKS: Final = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP: Final = re.compile(r"\.(?!\d)")  # 2.5 keeps its point
_ARTICLES: Final = frozenset({"a", "an", "the"})
_NUMBER_WORDS: Final = "zero one two three four five six seven eight nine ten"
_NUMBERS: Final = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
_CONTRACTED_WORDS: Final = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't shan't she'd've she's should've shouldn't shouldn't've that'd that'd've
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all you'd you'd've you'll you're you've
"""
_CONTRACTED: Final = tuple(_CONTRACTED_WORDS.split())
_CONTRACTIONS: Final = {form.replace("'", ""): form for form in _CONTRACTED if form != "let's"} | {
    part: form
    for form in _CONTRACTED
    if form.count("'") == 2
    for part in (form.replace("'", "", 1), "'".join(form.split("'")[:2]) + form.split("'")[2])
}


def normalise_answer(text: str) -> str:
    """Normalises one answer.

    Args:
        text: What a model or a person wrote.

    Returns:
        What is compared.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = re.sub(r"[\n\t]", " ", text).strip()
    kept = text
    for mark in _MARKS:
        kept = kept.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", kept).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
