"""Questions about groups: by templates from the captions alone, or by a model behind a chat endpoint."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from mcompose.evaluate.commonality.captions import Entity
from mcompose.evaluate.commonality.grouping import Group
from mcompose.evaluate.commonality.words import content_words
from mcompose.evaluate.judge_cache import JudgeCache

__all__ = ["Asked", "EndpointWriter", "TemplateWriter", "Writer"]

_TEMPLATES: Final = (
    "Which of these do all inputs have in common?",
    "What do all the inputs share?",
    "Which attribute fits every one of the inputs?",
    "Which of these belongs to all of the inputs?",
)
_OBJECT: Final = re.compile(r"\{.*\}", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """A question without its letters.

    Args:
        question: Its words.
        common: What all inputs have in common.
        distractors: Three other options.
    """

    question: str
    common: str
    distractors: tuple[str, str, str]


class Writer(Protocol):
    """Writes questions about groups."""

    name: str

    def write(self, groups: Sequence[Group]) -> list[Asked | None]:
        """Returns one question per group; None where none could be made."""
        ...


class TemplateWriter:
    """Questions from the captions' own words.

    The answer is the rarest word that all captions of a group share. Wrong options are words that some of its captions
    say and others do not, each from another caption while there are such, so that no modality alone gives the answer
    away; the rest are words of other groups.

    Args:
        entities: All captioned media: their words are what options are made of.
        seed: Everything random follows from it.
        partial: How many wrong options hold for some of the inputs, as far as captions have such words.
    """

    name = "templates"

    def __init__(self, entities: Sequence[Entity], *, seed: int = 0, partial: int = 3) -> None:
        self._seed, self._partial = seed, partial
        self._count: Counter[str] = Counter()
        forms: dict[str, Counter[str]] = {}
        modalities: dict[str, set[str]] = {}
        for entity in entities:
            for stem, word in content_words(entity.caption).items():
                self._count[stem] += 1
                forms.setdefault(stem, Counter())[word] += 1
                modalities.setdefault(stem, set()).add(entity.modality)
        self._form = {stem: min(c, key=lambda word: (-c[word], word)) for stem, c in forms.items()}
        self._options = sorted(stem for stem, seen in modalities.items() if len(seen) > 1)

    def write(self, groups: Sequence[Group]) -> list[Asked | None]:
        """Returns one question per group; None where no word is shared, or too few others are known."""
        return [self._one(group) for group in groups]

    def _one(self, group: Group) -> Asked | None:
        said = [content_words(member.caption) for member in group.members]
        shared = [stem for stem in said[0] if all(stem in words for words in said)]
        if not shared:
            return None
        common = min(shared, key=lambda stem: (self._count[stem], stem))
        key = "|".join(str(member.path.name) + member.caption for member in group.members)
        rng = np.random.default_rng([self._seed, zlib.crc32(key.encode())])
        wrong = self._half_true(said, shared, rng)
        anyone = {stem for words in said for stem in words}
        others = [stem for stem in self._options if stem not in anyone]
        wrong += [others[i] for i in rng.permutation(len(others))[: 3 - len(wrong)]]
        if len(wrong) < 3:
            return None
        first, second, third = (self._form[stem] for stem in wrong)
        question = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]
        return Asked(question, self._form[common], (first, second, third))

    def _half_true(self, said: Sequence[dict[str, str]], shared: Sequence[str], rng: np.random.Generator) -> list[str]:
        """Words of some captions, the captions by turns."""
        known = set(self._options)
        queues = []
        for member in rng.permutation(len(said)):
            own = [stem for stem in said[member] if stem not in shared and stem in known]
            queues.append([own[i] for i in rng.permutation(len(own))])
        wrong: list[str] = []
        while any(queues) and len(wrong) < self._partial:
            for queue in queues:
                while queue and queue[0] in wrong:
                    queue.pop(0)
                if queue and len(wrong) < self._partial:
                    wrong.append(queue.pop(0))
        return wrong


class EndpointWriter:
    """Questions by a model; a reply that is not the asked form makes no question.

    Args:
        cache: Asks the endpoint, and keeps its replies.
        name: What records call it.
    """

    def __init__(self, cache: JudgeCache, *, name: str) -> None:
        self._cache, self.name = cache, name

    def write(self, groups: Sequence[Group]) -> list[Asked | None]:
        """Returns one question per group; None where the reply could not be read."""
        return [_read(reply) for reply in self._cache.all([_prompt(group) for group in groups])]


def _prompt(group: Group) -> str:
    shown = "\n".join(f"{member.modality}: {member.caption}" for member in group.members)
    return (
        "Below are captions of inputs of different kinds. Write one multiple-choice question that asks which attribute "
        "all the inputs have in common. Write the attribute that is right, and three attributes of the same kind that "
        "are wrong because they fit only some of the inputs or none. Options are a few words each, do not name a kind "
        f"of input, and do not overlap.\n\n{shown}\n\n"
        'Reply with JSON and nothing else: {"question": "...", "answer": "...", "distractors": ["...", "...", "..."]}'
    )


def _read(reply: str) -> Asked | None:
    found = _OBJECT.search(reply)
    try:
        data: Any = json.loads(found[0]) if found else None
    except ValueError:
        return None
    if not isinstance(data, dict) or not isinstance(data.get("distractors"), list):
        return None
    texts = [data.get("question"), data.get("answer"), *data["distractors"]]
    if len(texts) != 5 or not all(isinstance(text, str) and text.strip() for text in texts):
        return None
    question, common, *wrong = (" ".join(str(text).split()) for text in texts)
    if len({text.casefold() for text in (common, *wrong)}) != 4:
        return None
    return Asked(question, common, (wrong[0], wrong[1], wrong[2]))
