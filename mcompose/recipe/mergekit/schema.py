"""Schema of a mergekit YAML. Unknown keys are refused; mergekit itself ignores them, including misspelt ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, PlainValidator, ValidationInfo, model_validator

from mcompose.errors import nearest_name
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Count, Spec
from mcompose.recipe.values import parse_value

__all__ = ["MergekitConfig", "MergekitModel", "MergekitRef", "MergekitSlice", "MergekitSource"]


@dataclass(frozen=True)
class MergekitRef:
    """A model reference of mergekit: ``path[@revision][+adapter[@revision]]``.

    Args:
        path: Folder or repository of the model.
        revision: Revision of the model's repository.
        adapter: Folder or repository of a LoRA adapter.
        adapter_revision: Revision of the adapter's repository.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None


def _reference(raw: Any, info: ValidationInfo) -> MergekitRef:
    if isinstance(raw, str) and raw:
        model, adapter = _split(raw, info)
        if adapter is not None and "+" in adapter and not _is_folder(adapter, info):
            raise FieldError(f"'{{path}}' names several adapters: '{raw}'.")
        return MergekitRef(*_place(model, info), *(_place(adapter, info) if adapter is not None else ()))
    if not isinstance(raw, Mapping):
        raise FieldError("'{path}' must be a model: a folder or org/name.")
    for key, value in raw.items():
        if key == "override_architecture" and value is None:
            continue
        if key not in {"model", "lora"}:
            message = "'{path}' is not built yet." if key == "override_architecture" else "'{path}' is not a known key."
            raise FieldError(message, at=(key,), hint=nearest_name(str(key), ["model", "lora"]))
    if "model" not in raw:
        raise FieldError("'{path}' lacks the key 'model'.")
    adapter = raw.get("lora")
    return MergekitRef(*_place(raw["model"], info), *(_place(adapter, info) if adapter is not None else ()))


def _split(raw: str, info: ValidationInfo) -> tuple[str, str | None]:
    """Splits a reference into model and adapter; a folder of that name is a model, whatever is in its name."""
    if _is_folder(raw, info):
        return raw, None
    ends = [place for place, letter in enumerate(raw) if letter == "+"]
    end = next((place for place in reversed(ends) if _is_folder(raw[:place], info)), next(iter(ends), None))
    return (raw, None) if end is None else (raw[:end], raw[end + 1 :])


def _is_folder(path: str, info: ValidationInfo) -> bool:
    """Returns whether a folder of this name lies beside the file; never so for texts without a file."""
    folder = (info.context or {}).get("folder")
    try:
        return folder is not None and bool(path) and (folder / Path(path).expanduser()).is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def _place(raw: Any, info: ValidationInfo) -> tuple[str, str | None]:
    """Splits a reference into path and revision."""
    if isinstance(raw, Mapping):
        path, revision = raw.get("path"), raw.get("revision")
    elif _is_folder(str(raw), info):
        path, revision = str(raw), None
    else:
        path, separator, revision = str(raw).partition("@")
        if separator and (not revision or "@" in revision):
            raise FieldError(
                f"'{{path}}' has a revision that cannot be read: '{raw}'.", hint="Write org/name@revision."
            )
    if not isinstance(path, str) or not path:
        raise FieldError("'{path}' does not name a model.", hint="Write a folder or org/name.")
    return path, revision or None


def _value(raw: Any) -> Any:
    return parse_value([raw] if isinstance(raw, Mapping) else raw)


def _tokenizer_source(raw: Any, info: ValidationInfo) -> Any:
    return raw if isinstance(raw, str) and raw in {"base", "union"} else _reference(raw, info)


MergekitModelRef: TypeAlias = Annotated[Any, PlainValidator(_reference)]
TokenizerSource: TypeAlias = Annotated[Any, PlainValidator(_tokenizer_source)]
Parameters: TypeAlias = dict[str, Annotated[Any, PlainValidator(_value)]]


class MergekitModel(Spec):
    """An entry of ``models``."""

    model: MergekitModelRef
    parameters: Parameters | None = None


class MergekitSource(Spec):
    """An entry of a slice's ``sources``."""

    model: MergekitModelRef
    layer_range: tuple[Count, Count]
    parameters: Parameters | None = None


class MergekitSlice(Spec):
    """An entry of ``slices``."""

    sources: tuple[MergekitSource, ...] = Field(min_length=1)
    base_model: MergekitModelRef | None = None
    residual_weight: float | None = None
    parameters: Parameters | None = None

    @model_validator(mode="after")
    def _check(self) -> MergekitSlice:
        if self.residual_weight is not None:
            raise FieldError(
                "'{path}' has no effect in mergekit.", at=("residual_weight",), hint="Remove it from the file."
            )
        return self


class MergekitTokenizer(Spec):
    """The ``tokenizer`` section."""

    source: TokenizerSource = "union"
    tokens: dict[str, Any] | None = None
    pad_to_multiple_of: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> MergekitTokenizer:
        for key in ("tokens", "pad_to_multiple_of"):
            if getattr(self, key):
                raise FieldError("'{path}' is not built yet.", at=(key,), hint="Use mergekit-tokensurgeon first.")
        return self


class MergekitConfig(Spec):
    """A mergekit YAML."""

    merge_method: str
    name: str | None = None
    models: tuple[MergekitModel, ...] | None = None
    slices: tuple[MergekitSlice, ...] | None = None
    modules: Any = None
    base_model: MergekitModelRef | None = None
    parameters: Parameters | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: MergekitTokenizer | None = None
    chat_template: str | None = None

    @model_validator(mode="after")
    def _check(self) -> MergekitConfig:
        if self.modules is not None:
            raise FieldError(
                "'{path}' is not built yet.",
                at=("modules",),
                hint="List the models under 'models'; mcompose finds the parts of a model itself.",
            )
        if bool(self.models) == bool(self.slices):
            raise FieldError("a mergekit recipe must have either 'models' or 'slices', with at least one entry.")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            message = "'tokenizer_source' and 'tokenizer' cannot both be set."
            raise FieldError(message, at=("tokenizer_source",), hint="Keep one of them.")
        if self.chat_template is not None:
            hint = "Leave it out: the template of the tokenizer's source is kept."
            raise FieldError("'{path}' is not built yet.", at=("chat_template",), hint=hint)
        return self
