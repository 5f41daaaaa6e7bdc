"""A folder made in one go appears whole or not at all, and nothing of anybody else's is deleted for it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mcompose.checkpoint import partial_folder, whole_folder
from mcompose.checkpoint.folders import JOURNAL_NAME, FolderLock
from mcompose.errors import OutputError, StorageError


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def make(folder: Path) -> None:
    with whole_folder(folder) as work:
        assert not folder.exists() or not any(folder.iterdir())
        (work / "deep").mkdir()
        (work / "deep" / "file").write_text("made")


@pytest.mark.parametrize("exists", [False, True])
def test_the_folder_holds_what_was_made_and_nothing_else(tmp_path, exists):
    if exists:
        (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    assert content(tmp_path) == {"out/deep/file": "made"}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_block_that_fails_leaves_nothing(tmp_path, error):
    def fail():
        with whole_folder(tmp_path / "out") as work:
            (work / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_discarded(tmp_path):
    partial = partial_folder(tmp_path / "out")
    partial.mkdir()
    (partial / JOURNAL_NAME).touch()
    (partial / "half").write_text("half")
    make(tmp_path / "out")
    assert content(tmp_path) == {"out/deep/file": "made"}


def test_a_strangers_partial_folder_is_not_touched(tmp_path):
    partial = partial_folder(tmp_path / "out")
    partial.mkdir()
    (partial / "thesis.txt").write_text("treasure")
    for _ in range(2):  # the first refusal must not make it look like mcompose's own
        with pytest.raises(
            OutputError, match=r"out\.partial' is needed for the output, but contains files that mcompose did not write"
        ) as caught:
            make(tmp_path / "out")
        assert caught.value.hint == "Move them away."
    assert content(tmp_path) == {"out.partial/thesis.txt": "treasure"}
    partial_folder(tmp_path / "other").write_text("a file")
    with pytest.raises(OutputError, match=r"other\.partial' cannot be created"):
        make(tmp_path / "other")
    assert partial_folder(tmp_path / "other").read_text() == "a file"


def test_two_runs_do_not_make_one_folder(tmp_path):
    with whole_folder(tmp_path / "out") as work:
        (work / "file").write_text("ours")
        with pytest.raises(OutputError, match="Another run is writing"):
            make(tmp_path / "out")
        assert (work / "file").read_text() == "ours"
    assert content(tmp_path) == {"out/file": "ours"}
    FolderLock.take(tmp_path / "out").release()  # it was let go


def test_a_folder_that_was_filled_meanwhile_is_kept(tmp_path):
    def fill():
        with whole_folder(tmp_path / "out") as work:
            (work / "file").write_text("ours")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "file").write_text("another's")

    with pytest.raises(StorageError, match=f"out' cannot be written: {os.strerror(errno.ENOTEMPTY)}"):
        fill()
    assert content(tmp_path) == {"out/file": "another's"}
