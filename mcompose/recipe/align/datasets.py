r"""The data sets of a stage: where the records are, how many are used, and what happens to one that cannot be used.

A data set is written as its path, or as a mapping when it needs more settings::

    data:
      - data/captions.jsonl
      - {path: data/charts.json, domain: chart, weight: 2, template: "{instruction}\nAnswer with one word."}
      - {path: hub:org/name@rev, split: train, streaming: true, on_broken: skip}
      - {path: data/vqa.jsonl, task: vqa, quota: 20000}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from mcompose.errors import RequestError
from mcompose.recipe.align.tasks import BoxForm, TaskName, Templates, check_task
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Count, Number, Spec, one_of
from mcompose.refs import ModelRef

__all__ = ["INSTRUCTION", "DatasetSpec", "Temperature"]

INSTRUCTION = "{instruction}"


def _path(raw: Any) -> Any:
    if not isinstance(raw, str) or not raw.strip():
        raise FieldError("'{path}' must name a file, a folder or 'hub:org/name'.")
    if not raw.startswith("hub:"):
        return raw.removeprefix("local:")
    try:
        ModelRef.parse(raw)
    except RequestError as error:
        raise FieldError(
            f"'{{path}}': {error.message}", hint="Write 'hub:org/name' or 'hub:org/name@revision'."
        ) from None
    return raw


def _template(raw: Any) -> Any:
    if raw is not None and (not isinstance(raw, str) or raw.count(INSTRUCTION) != 1):
        raise FieldError(
            f"'{{path}}' must contain '{INSTRUCTION}' exactly once.",
            hint=f"Write '{INSTRUCTION}\\nAnswer with one word.', for example.",
        )
    return raw


_FORMATS = ("auto", "llava", "chat")
_ANSWERS = ("error", "skip")
_LENGTHS = ("error", "skip", "cut")

Temperature: TypeAlias = Annotated[Number, Field(gt=0)]


class DatasetSpec(Spec):
    """One data set of a stage.

    Attributes:
        path: ``.json``, ``.jsonl`` or ``.parquet`` file, a folder of such files, or ``hub:org/name@rev``; relative to
            the recipe.
        format: ``llava`` (``conversations`` with placeholders in the text), ``chat`` (``messages``), or ``auto``:
            detected for each record.
        media: Folder that relative media paths start from; default: the folder of the file.
        domain: Domain of the data, for masking, routing and the record of the stage.
        weight: Share of the mixture, relative to the other data sets; default: the number of records.
        limit: Number of records to use, from the first; default: all.
        quota: Most samples that it gives in an epoch; each epoch takes others until all were used.
        task: Name of the task, whose templates make conversations of plain records (``question``, ``answer``, ``box``);
            see ``tasks.py``. Batches of one task and losses by task go by it.
        templates: Other words for the task: a YAML file, a list of instructions, or ``instructions`` and ``answer``.
        boxes: How its records write boxes and points.
        template: Text that every instruction is inserted into, in place of ``{instruction}``.
        on_broken: What happens to a record that is malformed or whose media file is missing or broken: ``error``, or
            ``skip`` and count it.
        on_long: What happens to a sample that is longer than ``max_length`` of the stage: ``error``, ``skip`` and count
            it, or ``cut`` its last answer. Media are never cut.
        streaming: Whether records are read one after the other and never listed; for the Hub and for data that do not
            fit in memory.
        split: Split of a data set on the Hub.
        subset: Configuration of a data set on the Hub.
    """

    path: Annotated[str, BeforeValidator(_path)]
    format: Annotated[Literal["auto", "llava", "chat"], one_of("format", _FORMATS)] = "auto"
    media: str | None = None
    domain: str | None = None
    weight: Annotated[Number, Field(gt=0)] | None = None
    limit: Annotated[Count, Field(ge=1)] | None = None
    quota: Annotated[Count, Field(ge=1)] | None = None
    task: TaskName | None = None
    templates: Templates | None = None
    boxes: BoxForm | None = None
    template: Annotated[str | None, BeforeValidator(_template)] = None
    on_broken: Annotated[Literal["error", "skip"], one_of("way with broken records", _ANSWERS)] = "error"
    on_long: Annotated[Literal["error", "skip", "cut"], one_of("way with long samples", _LENGTHS)] = "error"
    streaming: bool = False
    split: str = "train"
    subset: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, raw: Any) -> Any:
        return {"path": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _check(self) -> DatasetSpec:
        for key, chosen in (("split", self.split != "train"), ("subset", self.subset is not None)):
            if chosen and not self.path.startswith("hub:"):
                hint = "Name the file of the split as 'path'."
                raise FieldError("'{path}' is only for data sets on the Hub.", at=(key,), hint=hint)
        if self.quota is not None and self.streaming:
            hint = "Remove 'streaming', or set 'weight' instead."
            raise FieldError(
                "'{path}' needs a data set that is listed: a stream has no epochs.", at=("quota",), hint=hint
            )
        if self.boxes is not None and self.task is None:
            raise FieldError("'{path}' needs a 'task'.", at=("boxes",), hint="Write 'task: refer', for example.")
        if self.task is not None and self.format != "auto":
            hint = "Remove one of them: a task makes conversations of plain records."
            raise FieldError("'{path}' cannot be set beside 'task'.", at=("format",), hint=hint)
        check_task(self.task, self.templates)
        return self

    @property
    def task_name(self) -> str:
        """What its losses and batches of one task go by: its task, or its name without one."""
        return self.task or self.name

    @property
    def name(self) -> str:
        """Name in reports: the path as the recipe writes it."""
        return self.path
