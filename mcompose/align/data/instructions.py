"""Conversations of plain records, by the templates of a task.

A record of a task is a flat JSON object: its media under the usual names (``image``, ``audio``, ...), and the fields
that the templates name::

    {"image": "a.png", "question": "What is red?", "answer": "the car"}
    {"image": "a.png", "expression": "the man on the left", "box": [12, 30, 80, 200]}

The media come first, one a line, unless a template places them itself (``"<image> {question}"``). These names are made
from other fields; every other name is a field with a text or a number:

====================  ===============================================================================================
``box``, ``boxes``    a box as text, or several
``objects``           ``objects`` (list of ``name`` with ``box`` or ``boxes``): ``cat: [..], [..]``, one line a name
``classes``           the list of this name, else the names of ``objects``
``grounded_caption``  ``caption`` with the boxes of ``phrases`` (``phrase`` with ``box`` or ``boxes``) behind each
``keypoints``         a mapping of names to [x, y], a list of [x, y] or [x, y, visible], or COCO's flat list; ``[]``
                      for a point that is not there
``texts``             ``texts`` (list of ``text`` with ``box``): ``STOP [..]``, one a line
``options``           lines ``A. cat`` of a list or of a mapping of letters
``letter``            letter of the option that ``answer`` is: a letter, a number from 0, or the option's own text
``table``             a text, or a list of rows
====================  ===============================================================================================

Boxes and points are written as fractions of the padded square with two decimals. Which of several instructions a
record gets depends on the seed, the data set and the number of the record.

The square is that of the longest edge, also where tiles make a grid of other proportions. A record with ``width`` and
``height`` spares a look at its picture.

Paper: SPHINX, arXiv 2311.07575, and SPHINX-X, arXiv 2402.05935, for tasks as plain text without tokens of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from mcompose.align.data.datasets import Records
from mcompose.align.data.record_values import RecordValues
from mcompose.align.data.samples import COLUMNS, PLACEHOLDER, media_items
from mcompose.errors import RequestError, nearest_name
from mcompose.modalities import PLACEHOLDERS
from mcompose.recipe import BoxForm, DatasetSpec, Wording, builtin_tasks, read_templates

__all__ = ["TaskRecords", "TaskWriter", "task_writer", "wording_of"]


@dataclass(frozen=True)
class TaskWriter:
    """Makes conversations of the records of one data set.

    Args:
        task: Name of the task.
        wording: Its instructions and answer.
        boxes: How records write boxes and points.
        align: Where a picture lies in its padded square.
        seed: Seed of the stage.
        dataset: Number of the data set in the stage.
    """

    task: str
    wording: Wording
    boxes: BoxForm
    align: str
    seed: int
    dataset: int

    def conversation(self, record: Any, index: int, *, folder: Path) -> dict[str, Any]:
        """Makes a conversation of a record; every name of every template is looked up, whichever is chosen.

        Args:
            record: The record.
            index: Its number in the data set.
            folder: Folder where relative paths of its media start.

        Returns:
            A record in the layout ``chat``, with the media of the plain one.

        Raises:
            RequestError: A field is missing or cannot be read; the message does not name the record's place.
        """
        if isinstance(record, RequestError):
            raise record
        if not isinstance(record, Mapping):
            raise RequestError("the record is not a JSON object.")
        values = RecordValues(record, self.boxes, align=self.align, folder=folder)
        try:
            texts = {name: values.text(name) for name in self.wording.names}
        except RequestError as error:
            raise RequestError(f"the task '{self.task}': {error.message}", hint=error.hint) from error
        instruction = self._with_media(record, self.chosen(index), texts)
        kept = {key: record[key] for keys in COLUMNS.values() for key in keys if record.get(key) is not None}
        answer = _filled(self.wording.answer or "", texts)
        turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": answer}]
        return {**kept, **({"domain": record["domain"]} if "domain" in record else {}), "messages": turns}

    def attempt(self, record: Any, index: int, *, folder: Path) -> Any:
        """Returns the conversation of a record, or the error about it; see :meth:`conversation`."""
        try:
            return self.conversation(record, index, folder=folder)
        except RequestError as error:
            return error

    def chosen(self, index: int) -> str:
        """Returns the instruction that a record gets: the same in every epoch."""
        instructions = self.wording.instructions or ()
        digest = hashlib.blake2b(f"{self.seed}/{self.dataset}/{index}".encode(), digest_size=8).digest()
        return instructions[int.from_bytes(digest, "little") % len(instructions)]

    def _with_media(self, record: Mapping[str, Any], template: str, texts: Mapping[str, str]) -> str:
        placed = [found[0].replace("<point>", "<points>") for found in PLACEHOLDER.finditer(template)]
        before = ""
        for modality in COLUMNS:
            hole = PLACEHOLDERS[modality]
            if hole not in placed:
                before += f"{hole}\n" * len(media_items(record, modality))
        return before + _filled(template, texts)


class TaskRecords:
    """Records of a data set as conversations.

    Args:
        records: The plain records.
        writer: What makes conversations of them.
    """

    def __init__(self, records: Records, writer: TaskWriter) -> None:
        self._records, self._writer = records, writer

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Any:
        """Reads one record as a conversation; see :class:`Records`."""
        return self._writer.conversation(self._records.read(index), index, folder=self.media_folder(index))

    def place(self, index: int) -> str:
        """Returns the location of a record."""
        return self._records.place(index)

    def media_folder(self, index: int) -> Path:
        """Returns the folder where relative paths of a record's media start."""
        return self._records.media_folder(index)


def task_writer(
    spec: DatasetSpec, *, folder: Path, seed: int, dataset: int, align: str | None = None
) -> TaskWriter | None:
    """Returns what makes conversations of a data set's records.

    Args:
        spec: The data set.
        folder: Folder of the recipe, where relative paths start.
        seed: Seed of the stage.
        dataset: Number of the data set in the stage.
        align: Where the checkpoint puts a picture in its padded square; None where it does not say.

    Returns:
        The writer; None for a data set without a task.

    Raises:
        RequestError: A file of templates cannot be used, or the data set and the checkpoint do not agree on ``align``.
    """
    wording = wording_of(spec, folder=folder)
    if wording is None or spec.task is None:
        return None
    boxes = spec.boxes or BoxForm()
    if align is not None and boxes.align not in (None, align):
        raise RequestError(
            f"The boxes of {spec.name} are to have the alignment '{boxes.align}', and this checkpoint's mixed encoders "
            f"place pictures by '{align}'.",
            hint="Remove 'boxes.align' to follow the checkpoint.",
        )
    return TaskWriter(spec.task, wording, boxes, boxes.align or align or "center", seed, dataset)


def wording_of(spec: DatasetSpec, *, folder: Path) -> Wording | None:
    """Returns the words of a data set's task, those that it leaves out taken from the built-in task.

    Args:
        spec: The data set.
        folder: Folder of the recipe, where relative paths start.

    Returns:
        Instructions and answer; None without a task.

    Raises:
        RequestError: The file of templates cannot be used, or does not word the task.
    """
    if spec.task is None:
        return None
    own: Wording | None = None
    if isinstance(spec.templates, str):
        path = folder / Path(spec.templates).expanduser()
        found = read_templates(path)
        if spec.task not in found:
            raise RequestError(
                f"{path} has no templates for the task '{spec.task}'.", hint=nearest_name(spec.task, found)
            )
        own = found[spec.task]
    else:
        own = spec.templates
    whole = (own or Wording()).over(builtin_tasks().get(spec.task))
    if whole.instructions is None or whole.answer is None:
        lacking = "instructions" if whole.instructions is None else "answer"
        raise RequestError(f"The templates of the task '{spec.task}' in {spec.templates} lack '{lacking}'.")
    return whole


def _filled(template: str, texts: Mapping[str, str]) -> str:
    parts = Formatter().parse(template)
    return "".join(literal + (texts[name] if name is not None else "") for literal, name, _, _ in parts)
