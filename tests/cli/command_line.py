"""The command line in this process, and the small merge that most of its tests ask for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny_sources import write_recipe

from mcompose.cli.app import main


def run(arguments: list, monkeypatch: pytest.MonkeyPatch, folder: Path | None = None) -> int:
    """Exit code of a command, started in a folder."""
    if folder is not None:
        monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["mcompose", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def digest(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def linear_recipe(folder: Path, name: str = "recipe.yaml", **changes: object) -> Path:
    """Two language models of the folder, ``base`` and ``expert``, averaged into ``out``."""
    entries = [{"name": "base-too", "model": "local:base"}, {"name": "expert", "model": "local:expert"}]
    whole = {"sources": entries, "merge": {"method": "linear"}, "output": {"dir": "out"}}
    return write_recipe(folder / name, **{**whole, **changes})
