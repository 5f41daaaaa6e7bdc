"""From captions to question files, answer file and task cards."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcompose.errors import OutputError, RequestError
from mcompose.evaluate.commonality.captions import Entity
from mcompose.evaluate.commonality.embedding import Embed
from mcompose.evaluate.commonality.grouping import Group, group_entities
from mcompose.evaluate.commonality.questions import Asked, Writer
from mcompose.modalities import MODALITIES, RELEASED_NAMES
from mcompose.whole_files import write_json, write_text

__all__ = ["MadeSet", "MakeSettings", "make_sets"]

_RELEASED: Final = {name: released for released, name in RELEASED_NAMES.items()}
_HOLES: Final = {**_RELEASED, "image": "image"}  # placeholders call only a picture as mcompose does
_LETTERS: Final = "ABCD"


@dataclass(frozen=True)
class MakeSettings:
    """What a set is like.

    Args:
        name: Begins the names of its files.
        sizes: How many modalities a question has; one set per combination of modalities of that size.
        count: Most questions per set.
        seed: Everything random follows from it.
        min_similarity: Least cosine between two captions of a group.
        reuse: In how many questions of a set one medium may be.
    """

    name: str = "mcub"
    sizes: tuple[int, ...] = (3, 4)
    count: int = 500
    seed: int = 0
    min_similarity: float = 0.1
    reuse: int = 1


@dataclass(frozen=True)
class MadeSet:
    """One question file.

    Args:
        name: Its task's name.
        modalities: What its questions show.
        questions: How many it has.
        groups: How many groups were found.
        dropped: Groups about which no question could be written.
        card: Its task card, for ``mcompose eval``.
    """

    name: str
    modalities: tuple[str, ...]
    questions: int
    groups: int
    dropped: int
    card: Path


def make_sets(
    entities: Sequence[Entity],
    folder: Path,
    *,
    embedding: tuple[str, Embed],
    writer: Writer,
    settings: MakeSettings | None = None,
) -> list[MadeSet]:
    """Makes one set per combination of modalities.

    Args:
        entities: Captioned media.
        folder: Where the files go; media stay where they are.
        embedding: Name and embedding of captions.
        writer: Who writes the questions.
        settings: What the sets are like.

    Returns:
        The sets that have questions.

    Raises:
        RequestError: The captions do not have the modalities, or no question could be made.
        OutputError: The folder holds a set of that name.
    """
    settings = settings or MakeSettings()
    answers_file = folder / f"{settings.name}-answer.json"
    if answers_file.exists():
        raise OutputError(f"{folder} already holds a set '{settings.name}'.", hint="Name another folder with -o.")
    present = [m for m in MODALITIES if any(e.modality == m for e in entities)]
    combinations = [c for size in settings.sizes for c in itertools.combinations(present, size)]
    if not combinations or min(settings.sizes) < 2:
        raise RequestError(
            f"Questions over {_listed(settings.sizes)} modalities cannot be made of {_listed(present)}.",
            hint="Name sizes between 2 and the number of modalities: --size 2.",
        )
    vectors = embedding[1]([entity.caption for entity in entities])
    made, answers, told = [], [], []
    for modalities in combinations:
        groups = group_entities(
            entities, vectors, modalities, reuse=settings.reuse, min_similarity=settings.min_similarity
        )
        asked, dropped = _written(groups, writer, settings.count)
        name = "-".join(
            [settings.name, str(len(modalities)), *(modalities if len(modalities) < len(MODALITIES) else ())]
        )
        told.append({"set": name, "groups": len(groups), "dropped": dropped, "questions": len(asked)})
        if not asked:
            continue
        records, gold = _records(name, asked, folder=folder, seed=settings.seed)
        answers += gold
        made.append(
            MadeSet(name, modalities, len(asked), len(groups), dropped, _write(folder, name, records, answers_file))
        )
    if not made:
        raise RequestError(
            "No question could be made of these captions.",
            hint="Captions of different modalities must have words in common; or lower --min-similarity.",
        )
    settings_told = asdict(settings) | {"embedding": embedding[0], "writer": writer.name}
    write_json(folder / f"{settings.name}-made.json", {"settings": settings_told, "sets": told})
    write_json(answers_file, answers)
    return made


def _written(groups: Sequence[Group], writer: Writer, count: int) -> tuple[list[tuple[Group, Asked]], int]:
    """Questions about the tightest groups; no more are written than are missing."""
    asked: list[tuple[Group, Asked]] = []
    dropped = 0
    start = 0
    while len(asked) < count and start < len(groups):
        batch = groups[start : start + count - len(asked)]
        start += len(batch)
        for group, one in zip(batch, writer.write(batch), strict=True):
            if one is None:
                dropped += 1
            else:
                asked.append((group, one))
    return asked, dropped


def _records(
    name: str, asked: Sequence[tuple[Group, Asked]], *, folder: Path, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Question records and answer records; every letter is right equally often, give or take one."""
    rng = np.random.default_rng([seed, *name.encode()])
    letters = rng.permutation([i % 4 for i in range(len(asked))])
    records, answers = [], []
    for number, ((group, one), place) in enumerate(zip(asked, letters, strict=True)):
        options = [one.distractors[i] for i in rng.permutation(3)]
        options.insert(int(place), one.common)
        key = f"{name}-{number}"
        turns = [{"from": "human", "value": _turn(group, one.question, options)}]
        inputs = {_RELEASED[m.modality]: [_relative(m.path, folder)] for m in group.members}
        told = {"captions": {m.modality: m.caption for m in group.members}, "similarity": round(group.similarity, 4)}
        records.append(
            {"id": key, "conversations": [*turns, {"from": "gpt", "value": None}], "modal_inputs": inputs} | told
        )
        answers.append({"id": key, "conversations": [*turns, {"from": "gpt", "value": _LETTERS[int(place)]}]})
    return records, answers


def _turn(group: Group, question: str, options: Sequence[str]) -> str:
    shown = [f"{m.modality}: <{_HOLES[m.modality]}>" for m in group.members]
    lines = [f"{letter}. {text}" for letter, text in zip(_LETTERS, options, strict=True)]
    return "\n".join([*shown, question, *lines, "Answer with the letter of the right option."])


def _write(folder: Path, name: str, records: Sequence[Mapping[str, Any]], answers_file: Path) -> Path:
    write_json(folder / f"{name}.json", records)
    card = folder / f"{name}.yaml"
    write_text(card, f"task: {name}\nkind: mcub\nquestions: {name}.json\nanswers: {answers_file.name}\n")
    return card


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) or "nothing"
