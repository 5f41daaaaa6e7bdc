"""The searched recipe: the authored text with the found values put in place, comments and order kept.

YAML's node marks say where every value stands in the text. A value that is there is replaced where it stands; one that
is not is put behind the first entry of its mapping. Every edit is read back: where the text cannot be edited that way
(anchors that are used twice, unusual layouts, mergekit's files), the recipe is written anew from its values, and says
so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mcompose.errors import OutputError, RecipeError
from mcompose.pipeline.search.space import Settings, applied
from mcompose.recipe import LoadedRecipe, parse_recipe, recipe_text

__all__ = ["MARK", "check_target", "searched_path", "searched_text"]

MARK = "# Found by mcompose search"
SUFFIX = "-searched"


def searched_path(recipe: Path) -> Path:
    """Returns the path of the searched recipe: beside the authored one, where its references start."""
    return recipe.with_name(f"{recipe.stem}{SUFFIX}.yaml")


def check_target(path: Path) -> None:
    """Refuses to write over a file that no search has written.

    Args:
        path: Path of the searched recipe.

    Raises:
        OutputError: Something else is there.
    """
    if path.is_dir() or (path.exists() and not path.read_bytes().startswith(MARK.encode())):
        raise OutputError(
            f"'{path}', which the search would write, is there already and is not of a search.",
            hint="Move it away, or give it another name.",
        )


def searched_text(loaded: LoadedRecipe, settings: Settings, *, remarks: tuple[str, ...] = ()) -> str:
    """Returns the recipe with settings filled in.

    Args:
        loaded: The authored recipe.
        settings: Settings to fill in.
        remarks: Lines for the top, without ``#``.

    Returns:
        Text that loads as the authored recipe with these settings, a name of its own, and an output of its own.

    Raises:
        RecipeError: The recipe cannot be followed with these settings.
    """
    wanted = applied(loaded, settings).recipe
    output = wanted.output
    if output.dir is not None:
        output = output.model_copy(update={"dir": output.dir.rstrip("/") + SUFFIX})
    wanted = wanted.model_copy(update={"name": wanted.name + SUFFIX, "output": output})
    head = "".join(f"# {remark}".rstrip() + "\n" for remark in remarks)
    text = None
    if loaded.origin == "mcompose":
        text = _edited(loaded, settings, name=wanted.name, folder=output.dir)
    if text is None or not _reads_as(text, wanted, loaded.path):
        text = "# Written anew: the authored text could not be edited in place.\n" + recipe_text(wanted)
        parse_recipe(text, path=loaded.path)
    return head + text


def _edited(loaded: LoadedRecipe, settings: Settings, *, name: str, folder: str | None) -> str | None:
    text = loaded.text
    edits: list[tuple[tuple[str, ...], Any]] = [(("name",), name)]
    if folder is not None:
        edits.append((("output", "dir"), folder))
    if settings.weights is not None and loaded.recipe.merge.weights is None:
        edits.append((("merge", "weights"), dict(settings.weights)))
    else:
        edits += [(("merge", "weights", source), weight) for source, weight in (settings.weights or {}).items()]
    edits += [(("merge", "parameters", key), value) for key, value in settings.parameters.items()]
    for at, value in edits:
        edited = _put(text, at, value)
        if edited is None:
            return None
        text = edited
    return text


def _reads_as(text: str, wanted: Any, path: Path) -> bool:
    try:
        return parse_recipe(text, path=path).recipe == wanted
    except RecipeError:
        return False


def _put(text: str, at: tuple[str, ...], value: Any) -> str | None:
    """Returns the text with one value put in; None when it has no place for it."""
    try:
        node: Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return None
    for depth, key in enumerate(at):
        if not isinstance(node, MappingNode) or not _is_plain(node):
            return None
        found = next((v for k, v in node.value if isinstance(k, ScalarNode) and k.value == key), None)
        if found is None:
            return _inserted(text, node, _pair(at[depth:], value))
        node = found
    assert node is not None, "the last key was found"
    return text[: node.start_mark.index] + _flow(value) + text[_end(node) :]


def _is_plain(node: MappingNode) -> bool:
    """Returns whether a mapping has no merge keys, which hide where a value comes from."""
    return all(not key.tag.endswith(":merge") for key, _ in node.value)


def _pair(at: tuple[str, ...], value: Any) -> str:
    """Writes ``density: 0.5``, with the mappings around it that are missing."""
    key, *inner = at
    for outer in reversed(inner):
        value = {outer: value}
    return f"{key}: {_flow(value)}"


def _inserted(text: str, node: MappingNode, pair: str) -> str:
    """Inserts a new entry: first within braces, else on a line after the first entry."""
    if node.flow_style:
        start = node.start_mark.index + 1
        return f"{text[:start]}{pair}{', ' if node.value else ''}{text[start:]}"
    key, first = node.value[0]
    margin = " " * key.start_mark.column
    if isinstance(first, ScalarNode) and first.style not in {"|", ">"}:
        end = text.find("\n", _end(first))
        end = len(text) if end < 0 else end
        return f"{text[:end]}\n{margin}{pair}{text[end:]}"
    start = key.start_mark.index
    return f"{text[:start]}{pair}\n{margin}{text[start:]}"


def _end(node: Node) -> int:
    """Returns where a value ends; a block's own mark stands after the comments that follow it."""
    if isinstance(node, MappingNode | SequenceNode) and node.value and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index


def _flow(value: Any) -> str:
    """Writes a value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1 << 20, allow_unicode=True)
        .removesuffix("\n...\n")
        .strip()
    )
