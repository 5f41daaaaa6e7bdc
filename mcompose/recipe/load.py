"""Reads a recipe file into a ``Recipe``: mcompose's schema, or an unchanged mergekit YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from mcompose.errors import RecipeError
from mcompose.recipe.document import Document, KeyPath, parse_document, read_text
from mcompose.recipe.field_errors import as_recipe_error
from mcompose.recipe.schema import Recipe

__all__ = ["LoadedRecipe", "load_recipe", "parse_recipe"]

_MERGEKIT_KEYS = ("merge_method", "models", "slices", "modules", "base_model", "tokenizer_source")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with the text that it was read from.

    Args:
        path: File as the user wrote it; relative references start from its folder.
        text: Text of the file.
        recipe: The recipe.
        origin: ``mcompose`` or ``mergekit``.
        raw: Bytes of the file.
        notes: Remarks for the user: settings of a mergekit YAML that have no effect, as in mergekit.
        document: The values of the file with their lines.
    """

    path: Path
    text: str
    recipe: Recipe
    origin: Literal["mcompose", "mergekit"]
    raw: bytes
    notes: tuple[str, ...] = ()
    document: Document = field(default_factory=lambda: Document("", {}), repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """The folder that relative references start from."""
        return self.path.parent

    def error(self, message: str, *, at: KeyPath = (), hint: str = "") -> RecipeError:
        """Returns an error that names the file and the line of a key path: ``("merge", "weights", "sees")``."""
        return self.document.error(message, at=at, hint=hint)


def load_recipe(path: Path | str) -> LoadedRecipe:
    """Reads a recipe.

    Args:
        path: A recipe of schema 1, or a mergekit YAML.

    Returns:
        The recipe, with its text byte for byte.

    Raises:
        RecipeError: The file cannot be read or is not valid; the error names the file, the line and the key.
    """
    path = Path(path)
    raw, text = read_text(path)
    return parse_recipe(text, path=path, raw=raw)


def parse_recipe(text: str, *, path: Path, raw: bytes | None = None) -> LoadedRecipe:
    """Reads a recipe from text.

    Args:
        text: YAML.
        path: File of the text, for messages and for relative references.
        raw: The bytes of the file; default: the text in UTF-8.

    Returns:
        The recipe.

    Raises:
        RecipeError: The recipe is not valid.
    """
    document = parse_document(text, file=str(path))
    _refuse_other_tools(document)
    notes: tuple[str, ...] = ()
    origin: Literal["mcompose", "mergekit"] = "mergekit" if _is_mergekit(document.data) else "mcompose"
    if origin == "mergekit":
        document, notes = _from_mergekit(document, path)
    recipe = _validate(Recipe, document)
    raw = text.encode() if raw is None else raw
    return LoadedRecipe(path, text, recipe, origin, raw, notes=notes, document=document)


def _refuse_other_tools(document: Document) -> None:
    """Files of mergekit's other commands look like a merge, and are not one."""
    data = document.data
    if "experts" in data and ("base_model" in data or "gate_mode" in data) and "schema" not in data:
        raise document.error(
            "this is a file of mergekit-moe, which makes a mixture of experts out of models; mcompose merges models.",
            at=("experts",),
            hint="Make it with `mergekit-moe`; what it writes can be a source here.",
        )


def _is_mergekit(data: Mapping[Any, Any]) -> bool:
    if "schema" in data or "sources" in data:
        return False
    return any(key in data for key in _MERGEKIT_KEYS)


def _from_mergekit(document: Document, path: Path) -> tuple[Document, tuple[str, ...]]:
    # Imported only here, because most recipes do not need it.
    from mcompose.recipe.mergekit.convert import convert_mergekit  # noqa: PLC0415
    from mcompose.recipe.mergekit.schema import MergekitConfig  # noqa: PLC0415

    config = _validate(MergekitConfig, document, folder=path.parent)
    return convert_mergekit(config, document=document, path=path)


def _validate(model: type[BaseModel], document: Document, *, folder: Path | None = None) -> Any:
    try:
        return model.model_validate(document.data, context={"folder": folder})
    except ValidationError as error:
        raise as_recipe_error(error, model=model, document=document) from None
