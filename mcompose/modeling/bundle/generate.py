"""Decides which source files go into which generated file, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from mcompose import __version__

from .source import Source, parse_source, path_of
from .text import check_text, write_text

__all__ = ["bundle_sources", "generate_files", "write_files"]

_POINTS = {
    "configuration_points": ["points.configuration"],
    "modeling_points": ["points.network"],
    "processing_points": ["points.processing"],
}
_COMPOSED = {
    "configuration_mcompose": ["configuration.composed", "own_code"],
    "modeling_mcompose": ["network.composed"],
    "processing_mcompose": ["processing.composed"],
}
# Kind of checkpoint -> its groups of files: file -> the sources that it is made for.
_KINDS = {
    "composed": [_POINTS, _COMPOSED],
    "points": [_POINTS],
    "frames": [{"processing_frames": ["processing.frames"]}],
}


def generate_files(kind: str) -> dict[str, str]:
    """Generates the code that a checkpoint carries.

    Args:
        kind: "composed", "points" (the point-cloud model alone) or "frames" (the processor of small clips alone).

    Returns:
        File name -> text; the same at every call.
    """
    return dict(_generated(kind))


@cache
def _generated(kind: str) -> dict[str, str]:
    home = Path(__file__).parent.parent
    texts = {
        ".".join(path.relative_to(home).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(home.rglob("*.py"))
    }
    return bundle_sources(texts, _KINDS[kind])


def write_files(folder: str | Path, kind: str = "composed") -> list[Path]:
    """Writes the code that a checkpoint carries into a folder.

    Args:
        folder: The checkpoint; created when it is not there.
        kind: As :func:`generate_files` takes it.

    Returns:
        The files, sorted by name.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    texts = generate_files(kind)
    for name, text in texts.items():
        (target / name).write_bytes(text.encode("utf-8"))
    return [target / name for name in sorted(texts)]


def bundle_sources(
    texts: Mapping[str, str], groups: Sequence[Mapping[str, Sequence[str]]], *, version: str = __version__
) -> dict[str, str]:
    """Merges source files into a few generated ones.

    Args:
        texts: Dotted name of a source file, seen from the island ("experts.router") -> its text.
        groups: Groups of generated files in the order in which they may import each other. Each maps the name of a
            generated file, without ``.py``, to the sources that it is made for.
        version: Version of mcompose that the files name.

    Returns:
        File name -> text.

    Raises:
        ValueError: A name would change its meaning, sources import each other in a circle, or an import cannot be
            merged. The sentence names the source file and says what to change.
    """
    sources = _Sources(texts)
    homes: dict[str, str] = {}
    files = {}
    for group in groups:
        first, *others = group
        reached = [set(_in_order(sources, group[name])) for name in others]
        shared = set.union(*(a & b for a in reached for b in reached if a is not b)) if len(reached) > 1 else set()
        for name, roots in group.items():
            wanted = [*roots, *sorted(shared)] if name == first else roots
            modules = [module for module in _in_order(sources, wanted) if module not in homes]
            homes |= dict.fromkeys(modules, name)
            files[f"{name}.py"] = write_text(name, [sources[module] for module in modules], homes, version)
            check_text(name, files[f"{name}.py"], files)
    return files


class _Sources:
    """The sources by module, each taken apart when it is first asked for."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self.parsed: dict[str, Source] = {}

    def __getitem__(self, module: str) -> Source:
        if module not in self.parsed:
            self.parsed[module] = parse_source(module, self.texts[module])
            self._check_imports(self.parsed[module])
        return self.parsed[module]

    def _check_imports(self, source: Source) -> None:
        for wanted in source.imports:
            if not wanted.is_island:
                continue
            if wanted.module not in self.texts or f"{wanted.module}.{wanted.attribute}".lstrip(".") in self.texts:
                raise ValueError(
                    f"{source.path} imports {wanted.attribute!r} from '{wanted.module or '.'}', and generated files "
                    "know no modules or folders of the island. Import the names from the file that defines them."
                )
            if wanted.attribute not in self[wanted.module].defined:
                raise ValueError(
                    f"{source.path} imports {wanted.attribute!r} from {path_of(wanted.module)}, which does not define "
                    "it. Import it from the file that does."
                )


def _in_order(sources: _Sources, roots: Iterable[str]) -> list[str]:
    """Returns everything that the roots import, each behind what it needs."""
    done: dict[str, None] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            circle = " -> ".join(path_of(name) for name in (*path[path.index(module) :], module))
            raise ValueError(f"These files import each other in a circle: {circle}. Move what both need into one file.")
        if module not in done:
            for needed in sources[module].needs():
                visit(needed, (*path, module))
            done[module] = None

    for root in roots:
        visit(root, ())
    return list(done)
