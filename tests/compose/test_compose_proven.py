"""Composed outputs are made of families that were shown to answer as their own class does, and of no others."""

import json
import shutil

import pytest
from tiny_sources import write_recipe

from examples.families.compare import compare_family, compare_text
from mcompose.compose import proven
from mcompose.errors import CompositionError
from mcompose.modeling import refusal
from mcompose.pipeline.headers import inspect, plan
from mcompose.pipeline.write import merge
from mcompose.refs import ModelRef

KNOWN = json.loads(proven.PROVEN_FILE.read_text())


def recipe(sources, folder, output_format="composed"):
    return write_recipe(
        folder / "recipe.yaml",
        sources=[{"name": "sees", "model": f"local:{sources / 'sees'}"}],
        merge={"method": "naivemc"},
        output={"dir": "out", "format": output_format},
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"families": {}}, "a composition of this family was not shown to answer as its own class does"),
        ({"families": {"llava": ["video"]}}, "cannot bring image: of this family, video alone was compared"),
        ({"language_models": ["qwen2"]}, r"language model of the output \(llama\) was not shown"),
    ],
)
def test_what_was_not_compared_is_refused_by_plan_and_merge(sources, tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(proven, "what_is_proven", lambda: {**KNOWN, **change})
    path = recipe(sources, tmp_path)
    for step in (plan, merge):
        with pytest.raises(CompositionError, match=words):
            step(path)
    assert not list(tmp_path.glob("out*"))
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir()
    merge(recipe(sources, tmp_path, "native"))


def test_the_list_holds_no_family_that_cannot_be_composed_and_no_unknown_modality():
    assert [kind for kind in KNOWN["families"] if refusal(kind)] == []
    assert {modality for found in KNOWN["families"].values() for modality in found} == {"image", "audio", "video"}
    assert len(KNOWN["families"]) >= 45
    assert len(KNOWN["language_models"]) >= 80


def test_inspect_says_what_was_compared(sources, monkeypatch):
    ref = ModelRef("local", str(sources / "sees"))
    assert inspect([ref]).sources[0].composes == "image: as its own class answers"
    monkeypatch.setattr(proven, "what_is_proven", lambda: {**KNOWN, "families": {}})
    assert "not in composed outputs: this family was not compared" in inspect([ref]).sources[0].composes
    assert inspect([ModelRef("local", str(sources / "base"))]).sources[0].composes == ""


@pytest.mark.parametrize("family", ["qwen3_5", "glm4v_moe", "qwen3_vl_moe", "minimax_m3_vl", "cohere2_vision"])
def test_families_through_a_merge_are_exact(tmp_path, family):
    finding = compare_family(family, tmp_path)
    assert (finding.verdict, finding.reason) == ("exact", "")
    assert finding.modalities[0] == "image"


@pytest.mark.parametrize("text_type", ["qwen3_moe", "cohere2", "gemma2"])
def test_language_models_through_a_merge_are_exact(tmp_path, text_type):
    assert compare_text(text_type, tmp_path).verdict == "exact"


def test_a_family_that_needs_more_than_features_is_found_out(tmp_path):
    """ERNIE's language model sends tokens to experts by what they are, which a composition does not tell it."""
    assert compare_family("ernie4_5_vl_moe", tmp_path).verdict == "wrong"


@pytest.mark.slow
def test_every_family_of_the_list_is_still_right(tmp_path):
    for kind in KNOWN["families"]:
        (tmp_path / kind).mkdir()
        assert compare_family(kind, tmp_path / kind).verdict in ("exact", "near", "not tried"), kind
