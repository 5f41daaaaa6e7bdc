"""Small files appear whole or not at all, and a disk that refuses is a sentence that names the file."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess

import pytest
from mcompose.evaluate.appending import append_lines

from mcompose.errors import StorageError
from mcompose.on_disk import cache_folder
from mcompose.whole_files import (
    draft_of,
    storage_errors,
    whole_file,
    write_bytes,
    write_json,
    write_text,
)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB; skipped where it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_what_is_written_is_what_is_read(tmp_path):
    write_bytes(tmp_path / "new" / "folders" / "a.bin", b"\x00\r\n\xff")
    assert (tmp_path / "new" / "folders" / "a.bin").read_bytes() == b"\x00\r\n\xff"
    write_text(tmp_path / "text", "é\r\n\n")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa9\r\n\n"
    write_json(tmp_path / "table.json", {"b": "é", "a": [1.5, None]})
    assert (tmp_path / "table.json").read_bytes() == '{\n "b": "é",\n "a": [\n  1.5,\n  null\n ]\n}\n'.encode()
    write_json(tmp_path / "table.json", [], indent=2)
    assert json.loads((tmp_path / "table.json").read_text()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "table.json", "text"]


def test_permissions_are_those_of_an_ordinary_file_unless_they_are_named(tmp_path):
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "open", "")
        write_bytes(tmp_path / "closed", b"", mode=0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("open", "closed")]
    assert modes == [0o644, 0o600]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_block_that_fails_leaves_the_old_file_and_no_draft(tmp_path, error):
    def fail():
        with whole_file(tmp_path / "file") as file:
            file.write(b"half")
            raise error

    write_text(tmp_path / "file", "old")
    with pytest.raises(type(error)):
        fail()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_draft_that_a_killed_run_left_is_replaced_and_a_link_is_not_written_through(tmp_path):
    draft_of(tmp_path / "file").write_text("longer than what comes now")
    write_text(tmp_path / "file", "new")
    (tmp_path / "elsewhere").write_text("mine")
    draft_of(tmp_path / "other").symlink_to(tmp_path / "elsewhere")
    write_text(tmp_path / "other", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "file": "new",
        "other": "new",
        "elsewhere": "mine",
    }


def test_processes_that_share_a_file_have_drafts_of_their_own(tmp_path):
    with whole_file(tmp_path / "file", shared=True) as file:
        file.write(b"ours")
        draft_of(tmp_path / "file").write_text("another's")
        write_bytes(tmp_path / "file", b"another's")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["ours"]


def test_a_full_disk_is_told_with_figures_and_keeps_the_old_file(small_disk):
    path = small_disk / "report.json"
    write_json(path, {"good": 1})
    with pytest.raises(StorageError) as caught:
        write_bytes(path, b"x" * 100_000)
    assert caught.value.message.startswith(f"'{path}' cannot be written: the disk is full (100,000 bytes are needed, ")
    assert caught.value.message.endswith(" are free).")
    assert caught.value.hint == "Free some space, or choose another folder."
    assert json.loads(path.read_text()) == {"good": 1}
    assert [entry.name for entry in small_disk.iterdir()] == ["report.json"]
    with pytest.raises(StorageError, match=r"answers\.jsonl' cannot be written: the disk is full \(\d[\d,]* bytes are"):
        append_lines(small_disk / "answers.jsonl", [{"output": "x" * 100_000}])


def test_a_folder_that_may_not_be_written_is_told(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError) as caught:
        write_text(small_disk / "deep" / "card.md", "text")
    assert caught.value.message == f"'{small_disk / 'deep' / 'card.md'}' cannot be written: Read-only file system."
    assert caught.value.hint == "Check the permissions of this path, or choose another folder."


def test_a_limit_of_file_size_is_told(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(StorageError, match=r"large' cannot be written: the file would be larger than allowed"):
            write_bytes(tmp_path / "large", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_in_a_folder_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=r"'taken/below' cannot be written: (File exists|Not a directory)\."):
        write_text(tmp_path.relative_to(tmp_path) / "taken" / "below", "x")
    with (
        pytest.raises(StorageError, match=r"'a/b/c' cannot be written: the disk is full"),
        storage_errors(tmp_path.relative_to(tmp_path) / "a" / "b" / "c"),
    ):
        raise OSError(28, os.strerror(28))


def test_caches_go_where_the_user_has_them(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("kernels") == tmp_path / "mcompose" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("anatomy") == tmp_path / ".cache" / "mcompose" / "anatomy"
