"""Released question files, and task cards that say how to read them.

The files of arXiv 2402.12750 are JSON lists of records::

    {"id": "0", "conversations": [{"from": "human", "value": "image: <image> audio: <audio> What ...? A. ..."}, ...],
     "modal_inputs": {"vision": ["coco/1.jpg"], "audio": ["audiocaps/1.wav"]}}

with the modalities ``vision``, ``audio``, ``video``, ``point``, and one answer file whose records end in the answer. A
task card names them, relative to itself::

    kind: mcub                  # mcub | avqa | music-avqa | modelnet40 | objaverse
    questions: MCUB-4.json
    answers: MCUB-answer.json   # default: the question file itself
    media: /data/mcub           # where the paths of the questions start; default: beside the card
    task: mcub-4                # name in reports; default: the question file's
    max_new_tokens: 128

A question file with lettered answers needs no card when its answer file (``*answer*.json``) lies beside it.

Paper: arXiv 2402.12750 (MCUB, AVQA, MUSIC-AVQA); arXiv 2308.16911 (PointLLM: ModelNet40 and Objaverse by a judge).
Differs: A medium that cannot be read is an error, never another sample in its place. An answer that no one can parse is
wrong and counted, never scored by a random class.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from mcompose.errors import RequestError, nearest_name
from mcompose.evaluate.option_letters import choices_in
from mcompose.evaluate.task import Item, MediaInput, Task
from mcompose.modalities import MODALITIES, RELEASED_NAMES

__all__ = ["KINDS", "Card", "Kind", "load_card", "load_questions"]

_HOLES: Final = {**{modality: modality for modality in MODALITIES}, "point": "points"}
_HOLE: Final = re.compile(rf"<({'|'.join(_HOLES)})>")
_CLASSES: Final = """
    airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot glass_box
    guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink sofa stairs stool
    table tent toilet tv_stand vase wardrobe xbox
"""
_MODELNET40: Final = tuple(_CLASSES.split())


@dataclass(frozen=True)
class Kind:
    """How a kind of question file is scored.

    Args:
        metric: First metric.
        also: Further metrics.
        judge: What a judge is asked, if there is one.
    """

    metric: str
    also: tuple[str, ...] = ()
    judge: str = ""


KINDS: Final = {
    "mcub": Kind("letter", ("letter_lenient",)),
    "avqa": Kind("letter", ("letter_lenient",)),
    "music-avqa": Kind("vqa_match"),
    "modelnet40": Kind("label", ("label_sole",), judge="class"),
    "objaverse": Kind("label", judge="same"),
}


@dataclass(frozen=True)
class Card:
    """A task card, with its paths resolved.

    Args:
        kind: One of ``KINDS``.
        questions: Question file.
        answers: Answer file.
        media: Where media paths start.
        task: Name in reports.
        max_new_tokens: Longest answer.
        file: The card, or the question file when there is none.
    """

    kind: str
    questions: Path
    answers: Path
    media: Path
    task: str
    max_new_tokens: int
    file: Path


def load_card(file: Path, *, limit: int | None = None, check_media: bool = True) -> Task:
    """Reads the task that a card describes.

    Args:
        file: The card.
        limit: Only the first so many questions.
        check_media: Refuse a file that is not there.

    Returns:
        The task.

    Raises:
        RequestError: The card or a file behind it cannot be used; the message has the place.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict) or "questions" not in data or "kind" not in data:
        raise RequestError(f"{file} is not a task card.", hint="A card has at least 'kind:' and 'questions:'.")
    unknown = [key for key in data if key not in Card.__dataclass_fields__ or key == "file"]
    if unknown:
        known = [key for key in Card.__dataclass_fields__ if key != "file"]
        raise RequestError(f"{file}: '{unknown[0]}' is not a key of a task card.", hint=nearest_name(unknown[0], known))
    if data["kind"] not in KINDS:
        raise RequestError(f"{file}: no kind is called '{data['kind']}'.", hint=nearest_name(str(data["kind"]), KINDS))
    questions = file.parent / str(data["questions"])
    card = Card(
        kind=data["kind"],
        questions=questions,
        answers=file.parent / str(data.get("answers") or data["questions"]),
        media=file.parent / Path(str(data.get("media") or ".")).expanduser(),
        task=str(data.get("task") or questions.stem.lower()),
        max_new_tokens=int(data.get("max_new_tokens") or 128),
        file=file,
    )
    return _task(card, limit=limit, check_media=check_media)


def load_questions(file: Path, *, limit: int | None = None, check_media: bool = True) -> Task:
    """Reads a released question file with lettered answers, without a card.

    Args:
        file: The question file; the answers are its own, or those of the one file ``*answer*.json`` beside it.
        limit: Only the first so many questions.
        check_media: Refuse a file that is not there.

    Returns:
        The task.

    Raises:
        RequestError: Its answers are not found or are no letters, or a record or medium cannot be used.
    """
    hint = f"Say it in a task card, {file.stem}.yaml: kind: mcub, questions: {file.name}, answers: FILE, media: DIR."
    beside = sorted(p for p in file.parent.glob("*.json") if "answer" in p.name.lower() and p != file)
    if len(beside) > 1:
        raise RequestError(f"Beside {file} lie several answer files: {', '.join(p.name for p in beside)}.", hint=hint)
    answers = beside[0] if beside else file
    card = Card("mcub", file, answers, file.parent, file.stem.lower(), 128, file)
    try:
        return _task(card, limit=limit, check_media=check_media)
    except RequestError as error:
        raise type(error)(error.message, hint=error.hint or hint) from error


def _task(card: Card, *, limit: int | None, check_media: bool) -> Task:
    kind = KINDS[card.kind]
    gold = _answers(card)
    items = [
        _item(row, gold, card=card, place=f"{card.questions}: record {i}", check=check_media)
        for i, row in enumerate(_records(card.questions)[:limit])
    ]
    if not items:
        raise RequestError(f"{card.questions} asks nothing.")
    joint = "joint_" if all(len({x.modality for x in item.inputs}) > 1 for item in items) else ""
    labelled = kind.metric != "label" or all(item.label for item in items)
    return Task(
        name=card.task,
        version=1,
        metric=joint + kind.metric if labelled else "",
        modalities=tuple(m for m in MODALITIES if any(x.modality == m for item in items for x in item.inputs)),
        chance=_chance(card.kind, items),
        items=tuple(items),
        max_new_tokens=card.max_new_tokens,
        file=card.file,
        also=tuple(joint + metric for metric in kind.also),
        judge=kind.judge,
        template="chat",
    )


def _chance(kind: str, items: Sequence[Item]) -> float:
    """Accuracy of guessing among the options that each question lists; four when it lists none."""
    if KINDS[kind].metric == "letter":
        return sum(1 / (len(item.choices) or 4) for item in items) / len(items)
    return 1 / len(_MODELNET40) if kind == "modelnet40" else 0.0


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} is not JSON: {error}.") from error
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise RequestError(f"{file} is not a list of records.")
    return data


def _answers(card: Card) -> dict[str, tuple[str, str]]:
    """Per id the answer, and the label where the kind has one."""
    found: dict[str, tuple[str, str]] = {}
    for number, record in enumerate(_records(card.answers)):
        place = f"{card.answers}: record {number}"
        key = str(record.get("id", record.get("object_id", number)))
        value = _answer(record, card.kind, place=place)
        if found.setdefault(key, value) != value:
            raise RequestError(f"{place}: '{key}' was answered otherwise before.")
    return found


def _answer(record: Mapping[str, Any], kind: str, *, place: str) -> tuple[str, str]:
    label = record.get("label_name", record.get("label"))
    if kind == "modelnet40":
        index = record.get("label")
        if label not in _MODELNET40 or (isinstance(index, int) and _MODELNET40[index % 40] != label):
            raise RequestError(f"{place}: label {index}, label_name {label!r} is not a class of ModelNet40.")
        return str(label), str(label)
    turns = record.get("conversations")
    last = turns[-1].get("value") if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else None
    if not isinstance(last, str) or not last.strip():
        raise RequestError(f"{place}: its last turn holds no answer.")
    if KINDS[kind].metric == "letter" and not re.fullmatch(r"[A-Z]", last.strip()):
        raise RequestError(f"{place}: the answer '{last[:40]}' is not a letter.")
    return last.strip(), label if isinstance(label, str) and kind == "objaverse" else ""


def _item(
    record: Mapping[str, Any], gold: Mapping[str, tuple[str, str]], *, card: Card, place: str, check: bool
) -> Item:
    key = str(record.get("id", record.get("object_id", "")))
    place = f"{place} ({key})"
    if key not in gold:
        raise RequestError(f"{place} has no answer in {card.answers}.")
    human = [t for t in record.get("conversations") or [] if isinstance(t, dict) and t.get("from") == "human"]
    if len(human) != 1 or not isinstance(human[0].get("value"), str):
        raise RequestError(f"{place}: one human turn is needed.")
    turn = _HOLE.sub(lambda match: f"<{_HOLES[match[1]]}>", human[0]["value"])
    answer, label = gold[key]
    choices = {str(i): name for i, name in enumerate(_MODELNET40)} if card.kind == "modelnet40" else choices_in(turn)
    inputs = _inputs(record.get("modal_inputs") or {}, turn, media=card.media, place=place)
    for entry in inputs:
        if check and entry.path is not None and not entry.path.is_file():
            hint = "" if card.media != card.file.parent else "Say where the media are in a task card: media: DIR."
            raise RequestError(f"{place}: the {entry.modality} {entry.path} is missing.", hint=hint)
    return Item(key, inputs, turn, answer, choices, turn, label)


def _inputs(listed: Any, turn: str, *, media: Path, place: str) -> tuple[MediaInput, ...]:
    """One input per placeholder, in the order of the turn: the k-th of a modality is that modality's k-th path."""
    if not isinstance(listed, dict) or any(key not in RELEASED_NAMES for key in listed):
        raise RequestError(f"{place}: 'modal_inputs' maps {', '.join(RELEASED_NAMES)} to lists of paths.")
    paths = {modality: list(listed.get(key) or []) for key, modality in RELEASED_NAMES.items()}
    order = [match[1] for match in _HOLE.finditer(turn)]
    for modality, given in paths.items():
        if order.count(modality) != len(given):
            raise RequestError(f"{place}: {order.count(modality)} <{modality}> in the turn, and {len(given)} paths.")
    return tuple(MediaInput(m, f"<{m}>", media / str(paths[m].pop(0))) for m in order)
