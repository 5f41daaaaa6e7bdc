"""An output appears whole or not at all, and holds nobody else's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from staged_runs import (
    EXPECTED_FILES,
    LAYOUT,
    SPECS,
    content,
    digest_of,
    half_run,
    snapshot,
    whole_run,
    write_files,
    write_tensor,
)

from mcompose.card_mark import with_mark
from mcompose.checkpoint import StagedOutput, digest_tensor, open_checkpoint, plan_layout
from mcompose.checkpoint import folders as folders_module
from mcompose.checkpoint.folders import JOURNAL_NAME, LOCK_NAME, FolderLock
from mcompose.errors import OutputError


@pytest.fixture
def reference(tmp_path):
    whole_run(tmp_path / "reference")
    return snapshot(tmp_path / "reference")


def test_a_whole_run(tmp_path, reference):
    assert set(reference) == EXPECTED_FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reference"]
    checkpoint = open_checkpoint(tmp_path / "reference")
    for name, entry in checkpoint.tensors.items():
        assert digest_tensor(entry) == digest_of(content(name))


def test_nothing_in_the_partial_folder_looks_like_a_model(tmp_path):
    folder = tmp_path / "out"
    with StagedOutput.open(folder, fingerprint="one") as staged:
        staged.allocate(LAYOUT)
        names = {path.name for path in staged.partial.iterdir()}
        assert not any(name.startswith("model-") for name in names)
        assert not folder.exists()
        assert staged.partial == tmp_path / "out.partial"
        sizes = {path.name: path.stat() for path in staged.partial.glob(".partial-model*")}
        for shard in LAYOUT.shards:
            status = sizes[f".partial-{shard.filename}"]
            assert status.st_size == shard.size
            assert status.st_blocks * 512 >= shard.size, "the room is not set aside"


def test_work_is_kept_and_resumed(tmp_path, reference):
    folder = tmp_path / "out"
    half_run(folder)
    assert not folder.exists()
    with StagedOutput.open(folder, fingerprint="one") as staged:
        finished = staged.allocate(LAYOUT)
        assert staged.notice == ""
        assert list(finished) == ["t0", "t1", "t2"]
        assert finished["t1"].row == {"name": "t1", "action": "merged"}
        assert finished["t1"].digest == digest_of(content("t1"))
        assert staged.allocate(LAYOUT) is finished
    assert whole_run(folder) == ["t3", "t4", "t5", "t6", "t7"]
    assert snapshot(folder) == reference


@pytest.mark.parametrize(
    ("fingerprint", "resume", "why"), [("two", True, "another recipe"), ("one", False, "as requested")]
)
def test_another_run_discards_the_work_and_says_so(tmp_path, reference, fingerprint, resume, why):
    folder = tmp_path / "out"
    half_run(folder)
    with StagedOutput.open(folder, fingerprint=fingerprint, resume=resume) as staged:
        assert why in staged.notice
        assert staged.allocate(LAYOUT) == {}
    assert whole_run(folder, fingerprint=fingerprint) == list(LAYOUT.places)
    assert snapshot(folder) == reference


def test_another_layout_under_the_same_fingerprint_keeps_nothing(tmp_path):
    folder = tmp_path / "out"
    half_run(folder)
    other = plan_layout(SPECS, max_shard_size=10**6)
    with StagedOutput.open(folder, fingerprint="one") as staged:
        assert staged.allocate(other) == {}
        assert sorted(path.name for path in staged.partial.glob(".partial*")) == [".partial-model.safetensors"]


@pytest.mark.parametrize(
    "tail",
    [
        b'{"name": "t3", "dig',
        b"\x00" * 50,
        b'{"name": "t3"}\n',
        b'{"name": [3], "digest": "", "row": {}}\n',
        b"\xff\xff\n",
        b"[]\n",
        b"\n",
    ],
)
def test_a_torn_line_ends_the_journal(tmp_path, reference, tail):
    folder = tmp_path / "out"
    half_run(folder)
    journal = tmp_path / "out.partial" / JOURNAL_NAME
    whole = journal.read_bytes()
    journal.write_bytes(whole + tail)
    with StagedOutput.open(folder, fingerprint="one") as staged:
        assert list(staged.allocate(LAYOUT)) == ["t0", "t1", "t2"]
    assert journal.read_bytes() == whole
    assert whole_run(folder) == ["t3", "t4", "t5", "t6", "t7"]
    assert snapshot(folder) == reference


@pytest.mark.parametrize("head", [b"", b'{"journal": 1, "finger', b"\x00" * 80 + b"\n", b'{"journal": 99}\n'])
def test_a_journal_without_its_first_line_is_no_journal(tmp_path, reference, head):
    folder = tmp_path / "out"
    half_run(folder)
    (tmp_path / "out.partial" / JOURNAL_NAME).write_bytes(head)
    assert whole_run(folder) == list(LAYOUT.places)
    assert snapshot(folder) == reference


def test_after_a_power_cut_only_intact_tensors_are_believed(tmp_path, reference):
    folder = tmp_path / "out"
    half_run(folder)
    journal = tmp_path / "out.partial" / JOURNAL_NAME
    lines = journal.read_text().splitlines(keepends=True)
    head = {**json.loads(lines[0]), "boot": "another"}
    journal.write_text(json.dumps(head) + "\n" + "".join(lines[1:]))
    place = LAYOUT.places["t1"]
    with (tmp_path / "out.partial" / f".partial-{place.filename}").open("r+b") as handle:
        handle.seek(place.offset + 500)
        handle.write(bytes(100))  # a page that never reached the disk
    with StagedOutput.open(folder, fingerprint="one") as staged:
        assert list(staged.allocate(LAYOUT)) == ["t0", "t2"]
    with StagedOutput.open(folder, fingerprint="one") as staged:  # the journal is this boot's now
        assert list(staged.allocate(LAYOUT)) == ["t0", "t2"]
    assert whole_run(folder) == ["t1", "t3", "t4", "t5", "t6", "t7"]
    assert snapshot(folder) == reference


def test_finished_tensors_can_be_hashed_again(tmp_path):
    folder = tmp_path / "out"
    half_run(folder)
    place = LAYOUT.places["t0"]
    with (tmp_path / "out.partial" / f".partial-{place.filename}").open("r+b") as handle:
        handle.seek(place.offset)
        handle.write(b"changed")
    with StagedOutput.open(folder, fingerprint="one") as staged:
        assert list(staged.allocate(LAYOUT, recheck=True)) == ["t1", "t2"]


def test_a_run_killed_while_finishing_loses_nothing(tmp_path, reference, monkeypatch):
    folder = tmp_path / "out"

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mcompose.checkpoint.staged.swap_in", killed)
    with pytest.raises(KeyboardInterrupt):
        whole_run(folder)
    assert not folder.exists()
    monkeypatch.undo()
    assert whole_run(folder) == []
    assert snapshot(folder) == reference


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_keeps_the_work_and_shows_no_output(tmp_path, error):
    folder = tmp_path / "out"

    def stopped():
        with StagedOutput.open(folder, fingerprint="one") as staged:
            staged.allocate(LAYOUT)
            write_tensor(staged, "t0")
            raise error

    with pytest.raises(error):
        stopped()
    assert not folder.exists()
    assert whole_run(folder) == [name for name in LAYOUT.places if name != "t0"]


def test_abandon_leaves_nothing(tmp_path):
    with StagedOutput.open(tmp_path / "out", fingerprint="one") as staged:
        staged.allocate(LAYOUT)
        write_tensor(staged, "t0")
        staged.abandon()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_used_and_a_path_is_made(tmp_path):
    (tmp_path / "empty").mkdir()
    whole_run(tmp_path / "empty")
    whole_run(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c" / "config.json").exists()


def test_an_earlier_output_is_replaced_whole(tmp_path, reference):
    folder = tmp_path / "out"
    whole_run(folder)
    (folder / "config.json").write_text("old")
    (folder / "README.md").write_text(with_mark("old card"))
    assert whole_run(folder, fingerprint="two") == list(LAYOUT.places)
    assert snapshot(folder) == reference
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "reference"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("README.md", with_mark("a card") + "My own words.\n", "a README.md that a person has edited"),
        ("mcompose/notes.txt", "precious", r"did not write: 'mcompose/notes\.txt'"),
    ],
)
def test_what_a_person_wrote_into_an_output_is_not_deleted(tmp_path, name, text, words):
    folder = tmp_path / "out"
    whole_run(folder)
    (folder / name).write_text(text)
    with pytest.raises(OutputError, match=words):
        StagedOutput.open(folder, fingerprint="two")
    assert (folder / name).read_text() == text


def test_an_earlier_output_is_replaced_where_folders_cannot_be_exchanged(tmp_path, reference, monkeypatch):
    monkeypatch.setattr(folders_module, "_exchange", lambda *_: False)
    folder = tmp_path / "out"
    whole_run(folder)
    whole_run(folder, fingerprint="two")
    assert snapshot(folder) == reference
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "reference"]


def test_the_old_output_stands_until_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "out"
    whole_run(folder)
    old = snapshot(folder)
    half_run(folder, fingerprint="two")
    assert snapshot(folder) == old


@pytest.mark.parametrize("name", ["thesis.tex", "model.safetensors", ".hidden", "sub/deep.txt"])
def test_a_folder_that_holds_something_else_is_not_touched(tmp_path, name):
    folder = tmp_path / "out"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    with pytest.raises(OutputError, match=f"contains files that mcompose did not write: '{name.split('/')[0]}'"):
        StagedOutput.open(folder, fingerprint="one")
    assert snapshot(folder) == {name: b"mine"}
    assert not (tmp_path / "out.partial").exists()


def test_an_output_with_a_file_of_the_users_is_not_replaced(tmp_path):
    folder = tmp_path / "out"
    whole_run(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "plots" / "a.png").write_text("mine")
    with pytest.raises(OutputError, match=r"'notes\.txt' and 1 more"):
        StagedOutput.open(folder, fingerprint="two")


def test_something_that_appears_meanwhile_is_not_overwritten(tmp_path):
    folder = tmp_path / "out"
    with StagedOutput.open(folder, fingerprint="one") as staged:
        staged.allocate(LAYOUT)
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
        with pytest.raises(OutputError, match="files that mcompose did not write"):
            staged.finish()
    assert snapshot(folder) == {"mine.txt": b"mine"}


def test_a_file_or_the_root_is_no_output_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        StagedOutput.open(tmp_path / "file", fingerprint="one")
    with pytest.raises(OutputError, match="cannot be an output folder"):
        StagedOutput.open(Path("/"), fingerprint="one")
    with pytest.raises(OutputError, match="cannot be created"):
        StagedOutput.open(tmp_path / "file" / "out", fingerprint="one")


def test_a_strangers_partial_folder_is_not_touched(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="mcompose did not write"):
        StagedOutput.open(tmp_path / "out", fingerprint="one")
    assert (tmp_path / "out.partial" / "mine.txt").read_text() == "mine"


def test_two_runs_cannot_share_a_folder(tmp_path):
    folder = tmp_path / "out"
    with StagedOutput.open(folder, fingerprint="one") as staged:
        staged.allocate(LAYOUT)
        with pytest.raises(OutputError, match="Another run is writing"):
            StagedOutput.open(folder, fingerprint="one")
        code = (
            "from pathlib import Path; from mcompose.checkpoint import StagedOutput;"
            f"StagedOutput.open(Path({str(folder)!r}), fingerprint='one')"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "OutputError: Another run is writing" in result.stderr
    StagedOutput.open(folder, fingerprint="one").close()


def test_the_lock_outlives_no_run(tmp_path):
    lock = FolderLock.take(tmp_path / "x")
    lock.release()
    lock.release()
    assert not (tmp_path / "x").exists()
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / LOCK_NAME).write_text("")
    FolderLock.take(tmp_path / "y").release()


def test_threads_write_and_record(tmp_path, reference):
    folder = tmp_path / "out"
    with StagedOutput.open(folder, fingerprint="one") as staged:
        staged.allocate(LAYOUT)
        names = list(LAYOUT.places)
        threads = [
            threading.Thread(target=lambda part: [write_tensor(staged, name) for name in part], args=(names[start::3],))
            for start in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(staged.finished) == set(names)
        write_files(staged)
        staged.finish()
    assert snapshot(folder) == reference


def test_short_writes_are_completed(tmp_path, reference, monkeypatch):
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:13], offset))
    whole_run(tmp_path / "out")
    assert snapshot(tmp_path / "out") == reference


def test_bytes_outside_a_file_are_refused(tmp_path):
    with StagedOutput.open(tmp_path / "out", fingerprint="one") as staged:
        staged.allocate(LAYOUT)
        shard = LAYOUT.shards[0]
        with pytest.raises(ValueError, match="are not all in"):
            staged.pwrite_all(shard.filename, shard.size - 2, memoryview(b"abc"))


def test_a_small_file_that_a_killed_run_was_writing_does_not_stay(tmp_path, reference):
    half_run(tmp_path / "out")
    (tmp_path / "out.partial" / ".partial-config.json").write_text("{")
    whole_run(tmp_path / "out")
    assert snapshot(tmp_path / "out") == reference
