"""The data file says what transformers says today."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import tiny_configs

from mcompose.anatomy import generate
from mcompose.anatomy.family import Family, Renaming
from mcompose.anatomy.tables import exceptions, generated

needs_newest = pytest.mark.skipif(
    metadata.version("transformers") != generated()["transformers"],
    reason="the data file is generated with another transformers",
)


def families(data):
    renamings = [Renaming(**step) for step in data["renamings"]]
    return {name: Family.from_json(row, renamings) for name, row in data["families"].items()}


@needs_newest
def test_the_families_of_the_tests_are_as_transformers_has_them():
    kinds = tuple(
        kind for kind in tiny_configs.RAW if kind not in {"llava", "llava_next", "llava_next_video", "internvl"}
    )
    kinds = tuple(kind for kind in kinds if kind not in {"llava_onevision", "video_llava", "vipllava", "mistral3"})
    fresh, kept = generate.regenerate(only=kinds), generated()

    for section in ("types", "text_defaults"):
        assert fresh[section] == {name: kept[section][name] for name in fresh[section]}
    assert set(fresh["types"]) == set(kinds)
    held = families(kept)
    assert families(fresh) == {name: held[name] for name in fresh["families"]}


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_newest
def test_the_whole_file_is_as_transformers_has_it():
    assert generate.DATA_FILE.read_text() == generate.render(generate.regenerate())


def test_what_is_written_is_what_is_read():
    data = generated()
    renamings = [Renaming(**step) for step in data["renamings"]]
    for row in data["families"].values():
        family = Family.from_json(row, renamings)
        assert json.loads(json.dumps(family.to_json(renamings))) == row


def test_every_family_of_the_file_is_whole_or_refused():
    for name, family in families(generated()).items():
        parts = set(family.parts.values())
        assert {"language", "embedding", "head"} <= parts or family.refusal, name
        assert "encoder" in parts or family.refusal or not family.modalities, name
        assert family.layers or name == "xlm", name  # xlm keeps one list per kind of sub-layer


def test_exceptions_name_paths_that_exist():
    held = families(generated())
    for kind, parts in exceptions()["parts"].items():
        for name, family in held.items():
            if family.model_type == kind:
                assert set(parts) <= set(family.parts), name
