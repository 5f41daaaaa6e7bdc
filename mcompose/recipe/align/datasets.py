r"""A stage's data: which records, from where, how much of them, and what happens to a record that cannot be used.

A dataset is written as its path, or as a mapping when more is to be said::

    data:
      - data/captions.jsonl
      - {path: data/charts.json, domain: chart, weight: 2, template: "{instruction}\nAnswer with one word."}
      - {path: hub:org/name@rev, split: train, streaming: true, on_broken: skip}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from mcompose.errors import RequestError
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
            f"'{{path}}' must hold '{INSTRUCTION}' once.",
            hint=f"Write '{INSTRUCTION}\\nAnswer with one word.', for example.",
        )
    return raw


_FORMATS = ("auto", "llava", "chat")
_ANSWERS = ("error", "skip")
_LENGTHS = ("error", "skip", "cut")

Temperature: TypeAlias = Annotated[Number, Field(gt=0)]


class DatasetSpec(Spec):
    """One dataset of a stage.

    Attributes:
        path: ``.json``, ``.jsonl`` or ``.parquet`` file, a folder of such files, or ``hub:org/name@rev``; relative to
            the recipe.
        format: ``llava`` (``conversations`` with placeholders in the text), ``chat`` (``messages``), or found out from
            each record.
        media: Folder that the paths of media start from; default: that of the file.
        domain: What the data are about, for masks and the record of the stage.
        weight: Its share of the mixture, relative to the others'; default: its number of records.
        limit: Only the first so many records.
        template: What every instruction is put into, in the place of ``{instruction}``.
        on_broken: What happens to a record that is malformed or whose medium is missing or broken: ``error``, or
            ``skip`` and count.
        on_long: What happens to a sample that is longer than the stage's limit: ``error``, ``skip`` and count, or
            ``cut`` its last answer. A medium is never cut.
        streaming: Whether records are read as they come and never listed; for the Hub and for what exceeds memory.
        split: Split of a Hub dataset.
        subset: Configuration of a Hub dataset.
    """

    path: Annotated[str, BeforeValidator(_path)]
    format: Annotated[Literal["auto", "llava", "chat"], one_of("format", _FORMATS)] = "auto"
    media: str | None = None
    domain: str | None = None
    weight: Annotated[Number, Field(gt=0)] | None = None
    limit: Annotated[Count, Field(ge=1)] | None = None
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
                raise FieldError("'{path}' is only for the Hub.", at=(key,), hint=hint)
        return self

    @property
    def name(self) -> str:
        """What reports call it: the path as it was written."""
        return self.path
