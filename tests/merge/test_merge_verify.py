"""``verify`` finds every kind of damage, and nothing in a sound output."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file, save_file

from mcompose.errors import CheckpointError
from mcompose.ledger import Ledger, TensorRow
from mcompose.merge.verify import SHOWN, verify

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5, dtype=np.uint16),
    "c": np.zeros((0, 2), np.float32),
    "d": np.array(7, np.int64),
}


def _row(name, values, dtype, **changes):
    facts = {"dtype": dtype, "shape": values.shape, "digest": "xxh3:" + xxhash.xxh3_128_hexdigest(values.tobytes())}
    return TensorRow(name, "merged", **{**facts, **changes})


def _lock(folder):
    weights = {path.name: {"size": path.stat().st_size} for path in folder.glob("*.safetensors")}
    names = ["config.json", INDEX, "mcompose/ledger.json", "mcompose/recipe.yaml"]
    small = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name in names
        for data in [(folder / name).read_bytes()]
    }
    (folder / "mcompose" / "lock.json").write_text(json.dumps({"format": 1, "files": {**small, **weights}}))


@pytest.fixture
def output(tmp_path):
    folder = tmp_path / "out"
    (folder / "mcompose").mkdir(parents=True)
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, folder / ONE)
    save_file({"c": TENSORS["c"], "d": TENSORS["d"]}, folder / TWO)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": ONE, "b": ONE, "c": TWO, "d": TWO}}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "README.md").write_text("card")
    (folder / "mcompose" / "recipe.yaml").write_text("schema: 1\n")
    dtypes = {"a": "F32", "b": "U16", "c": "F32", "d": "I64"}
    rows = [_row(name, values, dtypes[name]) for name, values in TENSORS.items()]
    dropped = TensorRow("gone", "dropped", note="a head that is tied")
    ledger = Ledger("test", "linear", tensors=(*rows, dropped))
    (folder / "mcompose" / "ledger.json").write_text(ledger.to_json())
    _lock(folder)
    return folder


def _problems(folder):
    return {problem.where: problem.sentence for problem in verify(folder).problems}


def test_a_sound_output_has_no_problem(output):
    report = verify(output)
    assert report.problems == ()
    assert report.ok
    assert (report.files, report.tensors, report.nbytes) == (6, 4, 48 + 10 + 8)
    assert "6 files and 4 tensors (66 bytes)" in report.to_text()
    assert report.to_dict()["ok"] is True
    json.dumps(report.to_dict())


def test_one_flipped_bit_names_its_tensor_only(output):
    path = output / ONE
    raw = bytearray(path.read_bytes())
    for name, place in (("b", len(raw) - 1), ("a", len(raw) - 11)):
        changed = bytearray(raw)
        changed[place] ^= 1
        path.write_bytes(changed)
        found = _problems(output)
        assert list(found) in ([name], [{"a": "b", "b": "a"}[name]])
        assert f"its bytes in '{ONE}' have another digest" in next(iter(found.values()))


def test_each_bit_of_the_weights_is_covered(output):
    path = output / TWO
    raw = path.read_bytes()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        blank = raw[place : place + 1] == b" " and place > 8
        assert blank or not verify(output).ok, f"byte {place} of {len(raw)} may change unseen"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("config.json", "has another hash"), ("mcompose/recipe.yaml", "has another hash")],
)
def test_a_changed_file_of_the_same_size(output, name, sentence):
    raw = bytearray((output / name).read_bytes())
    raw[-3] ^= 1
    (output / name).write_bytes(raw)
    assert sentence in _problems(output)[name]


def test_a_file_of_another_size(output):
    (output / "config.json").write_text("{}")
    assert _problems(output) == {"config.json": "has 2 bytes instead of 23"}
    assert verify(output).to_text().startswith("1 problem in ")


def test_a_truncated_shard_names_file_and_lost_tensors(output):
    (output / TWO).write_bytes((output / TWO).read_bytes()[:-1])
    report = verify(output)
    sentences = [problem.sentence for problem in report.problems if problem.where == TWO]
    assert "was written with" in sentences[0]
    assert "truncated" in sentences[1]
    assert {problem.where for problem in report.problems} >= {"c", "d"}


def test_missing_and_extra_files(output):
    (output / "config.json").unlink()
    (output / "notes.txt").write_text("x")
    (output / "sub").mkdir()
    (output / "sub" / "more.bin").write_text("x")
    assert _problems(output) == {
        "config.json": "is missing",
        "notes.txt": "is not in the lock",
        "sub/more.bin": "is not in the lock",
    }


def test_what_may_stand_in_an_output(output):
    (output / "README.md").write_text("another card")
    (output / "mcompose" / "evaluation.json").write_text("{}")
    (output / ".gitattributes").write_text("x")
    (output / ".cache").mkdir()
    (output / ".cache" / "x").write_text("x")
    (output / "__pycache__").mkdir()
    (output / "__pycache__" / "x.pyc").write_text("x")
    assert verify(output).ok


def test_missing_and_extra_tensors(output):
    save_file({"c": TENSORS["c"], "new": TENSORS["d"]}, output / TWO)
    (output / INDEX).write_text(json.dumps({"weight_map": {"a": ONE, "b": ONE, "c": TWO, "new": TWO}}))
    _lock(output)
    found = _problems(output)
    assert found["d"] == "is in the ledger, but not in a weight file"
    assert found["new"] == f"is in '{TWO}', but not in the ledger"
    assert len(found) == 2


def test_a_tensor_of_another_dtype_or_shape(output):
    tensors = load_file(output / ONE)
    save_file({"a": tensors["a"].reshape(4, 3), "b": tensors["b"].view(np.int16)}, output / ONE)
    _lock(output)
    found = _problems(output)
    assert found["a"] == f"is F32 [4, 3] in '{ONE}' instead of F32 [3, 4]"
    assert found["b"] == f"is I16 [5] in '{ONE}' instead of U16 [5]"


def test_a_shard_that_the_lock_does_not_know(output):
    save_file({"a": TENSORS["a"]}, output / "model-00003.safetensors")
    found = verify(output).problems
    assert [problem.where for problem in found] == ["model-00003.safetensors", "a"]
    assert "is in two files" in found[1].sentence


def test_an_index_that_points_elsewhere(output):
    (output / INDEX).write_text(json.dumps({"weight_map": {"a": ONE, "b": TWO, "c": TWO, "d": TWO}}))
    _lock(output)
    assert _problems(output) == {INDEX: "does not name the right files of the tensors"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": []}', "\x00\xff"])
def test_a_broken_lock_is_a_problem_not_a_crash(output, text):
    (output / "mcompose" / "lock.json").write_bytes(text.encode("latin-1"))
    assert "mcompose/lock.json" in _problems(output)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', "\xff\xfe"])
def test_a_broken_ledger_is_a_problem_not_a_crash(output, text):
    (output / "mcompose" / "ledger.json").write_bytes(text.encode("latin-1"))
    found = _problems(output)
    assert "mcompose/ledger.json" in found
    assert "not in the ledger" in found["a"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "", "a\x00b"])
def test_a_lock_cannot_lead_out_of_its_folder(output, name):
    lock = json.loads((output / "mcompose" / "lock.json").read_text())
    lock["files"][name] = {"size": 1}
    (output / "mcompose" / "lock.json").write_text(json.dumps(lock))
    assert "not a file of this folder" in _problems(output)["mcompose/lock.json"]


def test_a_folder_that_is_no_output(tmp_path):
    with pytest.raises(CheckpointError, match=r"does not contain mcompose/ledger\.json"):
        verify(tmp_path)


def test_progress_counts_every_byte(output):
    class Counter:
        total = seen = 0
        finished = False

        def start(self, total_bytes, done_bytes):
            self.total = total_bytes

        def advance(self, nbytes):
            self.seen += nbytes

        def finish(self):
            self.finished = True

    counter = Counter()
    verify(output, progress=counter)
    assert counter.total == counter.seen == 66
    assert counter.finished


def test_a_long_list_is_cut(output):
    for number in range(SHOWN + 5):
        (output / f"x{number:02}").write_text("x")
    lines = verify(output).to_text().splitlines()
    assert lines[0].startswith("25 problems")
    assert lines[-1] == "  ... and 5 more"
