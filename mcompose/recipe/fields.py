"""Field types that the recipe's models share: references, names, sizes and numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, PlainValidator, Strict

from mcompose.dtypes import FLOAT_CODES
from mcompose.errors import RequestError, nearest_name
from mcompose.modalities import MODALITIES
from mcompose.part_names import SOURCE_PARTS
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.values import Value, parse_value, parse_weight
from mcompose.refs import ModelRef

__all__ = [
    "UNION",
    "Bytes",
    "Count",
    "Dtype",
    "Modality",
    "Number",
    "ParameterValue",
    "Part",
    "Reference",
    "SourceName",
    "Spec",
    "Title",
    "WeightValue",
    "one_of",
]

UNION = "union"
"""Word for the tokenizer of all sources together."""


_DTYPE_NICKNAMES = {
    "bf16": "bfloat16",
    "bfloat": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "single": "float32",
    "fp64": "float64",
    "f64": "float64",
    "double": "float64",
}
_SOURCE_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?")
_TITLE = re.compile(r"[A-Za-z0-9][\w .+-]*")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Spec(BaseModel):
    """Base class of a recipe's sections: frozen, and refuses unknown keys."""

    # Deferred: the validators are built when the first recipe is read, so that the import stays cheap.
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )


def one_of(kind: str, known: tuple[str, ...], nicknames: Mapping[str, str] | None = None) -> BeforeValidator:
    """Returns a validator that accepts only known names and suggests the nearest one.

    Args:
        kind: What the names stand for, for the message: ``"dtype"``.
        known: The accepted names.
        nicknames: Common other spellings, each to the name that is suggested for it.

    Returns:
        The validator.
    """

    def check(raw: Any) -> Any:
        if isinstance(raw, str) and raw in known:
            return raw
        text = f"'{raw}'" if isinstance(raw, str) else "empty" if raw is None else str(raw)
        meant = (nicknames or {}).get(str(raw).removeprefix("torch.").lower(), str(raw).removeprefix("torch."))
        hint = f"Did you mean '{meant}'?" if meant in known else nearest_name(str(raw), known)
        raise FieldError(f"'{{path}}' is not a known {kind}: {text}.", hint=hint)

    return BeforeValidator(check)


def _reference(raw: Any) -> Any:
    if isinstance(raw, ModelRef):
        return raw
    if not isinstance(raw, str):
        raise FieldError("'{path}' must be 'hub:org/name' or 'local:path'.")
    try:
        return ModelRef.parse(raw)
    except RequestError as error:
        raise FieldError(f"'{{path}}': {error.message}", hint=error.hint) from None


def _source_name(raw: Any) -> Any:
    if not isinstance(raw, str) or not _SOURCE_NAME.fullmatch(raw):
        raise FieldError(
            f"'{{path}}' cannot be '{raw}'.",
            hint="Use a letter, then up to 63 letters, digits, '_' and '-', not ending in '_' or '-'.",
        )
    if "__" in raw:
        hint = "Use one '_': '__' separates the source's name from the names of its inputs."
        raise FieldError("'{path}' cannot contain '__'.", hint=hint)
    if raw == "base":
        hint = "Choose another name; the base language model belongs to the top-level key 'base'."
        raise FieldError("'{path}' cannot be 'base'.", hint=hint)
    return raw


def _title(raw: Any) -> Any:
    if not isinstance(raw, str) or not _TITLE.fullmatch(raw):
        raise FieldError(f"'{{path}}' cannot be '{raw}'.", hint="Use letters, digits, spaces and . + - _")
    return raw


def _bytes(raw: Any) -> int:
    size = raw if isinstance(raw, int) and not isinstance(raw, bool) else None
    match = _SIZE.fullmatch(raw.strip()) if isinstance(raw, str) else None
    if match:
        number, power, binary = match.groups()
        unit = 1024 if binary else 1000
        size = int(float(number) * unit ** _POWERS[power.upper()])
    if size is None:
        raise FieldError(f"'{{path}}' is not a size: '{raw}'.", hint="Write 5GB, 500MB, 4GiB or a number of bytes.")
    if size < 1:
        raise FieldError("'{path}' must be more than zero.")
    return size


def _parameter(raw: Any) -> Any:
    """Reads one value, or a mapping of sources to values."""
    if not isinstance(raw, Mapping):
        return parse_value(raw)
    if not raw:
        raise FieldError("'{path}' has no value.")
    values: dict[str, Value] = {}
    for source, value in raw.items():
        try:
            values[source] = parse_value(value)
        except FieldError as error:
            raise FieldError(error.message, at=(source, *error.at), hint=error.hint) from None
    return values


Reference: TypeAlias = Annotated[Any, PlainValidator(_reference), PlainSerializer(str)]
SourceName: TypeAlias = Annotated[str, BeforeValidator(_source_name)]
Title: TypeAlias = Annotated[str, BeforeValidator(_title)]
Bytes: TypeAlias = Annotated[int, PlainValidator(_bytes)]
Count: TypeAlias = Annotated[int, Strict()]
Number: TypeAlias = Annotated[float, Strict()]
WeightValue: TypeAlias = Annotated[Any, PlainValidator(parse_weight)]
ParameterValue: TypeAlias = Annotated[Any, PlainValidator(_parameter)]
Modality: TypeAlias = Annotated[str, one_of("modality", MODALITIES)]
Dtype: TypeAlias = Annotated[str, one_of("dtype", tuple(FLOAT_CODES), _DTYPE_NICKNAMES)]
Part: TypeAlias = Annotated[str, one_of("part", SOURCE_PARTS)]
