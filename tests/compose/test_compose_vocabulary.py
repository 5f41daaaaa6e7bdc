"""Rows are merged only where all tokenizers mean the same token."""

import json

import pytest

from mcompose.compose.vocabulary import Vocabulary, read_vocabulary, shared_rows
from mcompose.errors import CheckpointError, CompositionError

BASE = {index: f"t{index}" for index in range(20)}


def test_rows_behind_the_base_are_not_shared_when_their_tokens_differ():
    sees = Vocabulary("sees", {**BASE, 20: "<image>", 21: "<pad>"}, 24)
    hears = Vocabulary("hears", {**BASE, 20: "<image>", 21: "<video>"}, 24)
    shared = shared_rows(sees, [hears])
    assert shared.ranges == ((0, 21), (22, 24))  # 22 and 23 are padding in both
    assert shared.rows == 24
    assert shared.differing == ((21, ("<pad>", "<video>")),)


def test_a_renamed_reserved_token_does_not_hide_the_tokens_behind_it():
    plain = Vocabulary("plain", BASE, 20)
    renamed = Vocabulary("renamed", {**BASE, 17: "<image>"}, 20)
    assert shared_rows(plain, [renamed]).ranges == ((0, 17), (18, 20))


def test_the_owner_decides_the_number_of_rows():
    base = Vocabulary("base", BASE, 20)
    sees = Vocabulary("sees", {**BASE, 20: "<image>"}, 64)
    assert shared_rows(base, [sees]) == shared_rows(base, [sees, sees])
    assert shared_rows(base, [sees]).rows == 20
    assert shared_rows(sees, [base]).rows == 64
    assert shared_rows(sees, [base]).ranges == ((0, 20),)


def test_tokenizers_of_two_bases_clash():
    other = Vocabulary("other", {index: f"u{index}" for index in range(20)}, 20)
    with pytest.raises(CompositionError, match=r"20 of 20 ids differ; id 0 is 't0' in 'base', 'u0' in 'other'"):
        shared_rows(Vocabulary("base", BASE, 20), [other])


@pytest.mark.parametrize(
    "vocab", [{"a": 0, "b": 1}, [["a", -1.0], ["b", -2.0]]], ids=["map", "list of pairs (Unigram)"]
)
def test_reads_both_forms_of_a_vocabulary(tmp_path, vocab):
    text = json.dumps({"model": {"vocab": vocab}, "added_tokens": [{"id": 2, "content": "<image>"}]})
    (tmp_path / "tokenizer.json").write_text(text)
    vocabulary = read_vocabulary(tmp_path, source="sees", rows=4)
    assert vocabulary is not None
    assert vocabulary.tokens == {0: "a", 1: "b", 2: "<image>"}


def test_a_broken_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"'sees' has a tokenizer\.json that .*/tokenizer\.json'\): it has no 'model'\."
    ):
        read_vocabulary(tmp_path, source="sees", rows=4)
    assert read_vocabulary(tmp_path / "none", source="sees", rows=4) is None


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("keys", [("added_tokens", "model"), ("model", "added_tokens")])
def test_sources_that_share_a_model_section_keep_their_own_added_tokens(tmp_path, indent, keys):
    models: dict[bytes, dict[int, str]] = {}
    for name, content in (("sees", "<image>"), ("hears", "<audio>"), ("plain", "b")):
        table = {"added_tokens": [{"id": 1, "content": content}], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}
        (tmp_path / name).mkdir()
        text = json.dumps({key: table[key] for key in keys}, indent=indent)
        (tmp_path / name / "tokenizer.json").write_text(text)
        vocabulary = read_vocabulary(tmp_path / name, source=name, rows=2, models=models)
        assert vocabulary is not None
        assert vocabulary.tokens == {0: "a", 1: content}
    assert len(models) == {None: 0, 2: 1 if keys[-1] == "model" else 3}[indent]
