"""What a config leaves out is filled as transformers fills it, and the head is tied when transformers ties it."""

from __future__ import annotations

import itertools
from importlib import metadata

import pytest
import tiny_configs
import tiny_models as tiny

from mcompose.anatomy import meta
from mcompose.anatomy.settings import read_settings
from mcompose.anatomy.tables import generated

pytestmark = [
    pytest.mark.floor,
    pytest.mark.skipif(
        metadata.version("transformers") != generated()["transformers"],
        reason="defaults change between versions of transformers; the file holds the newest",
    ),
]


NESTED = [kind for kind in sorted(tiny.TINY) if generated()["types"][kind]["text_key"]]
FLAT = [kind for kind in sorted(tiny.TINY) if kind not in NESTED]


@pytest.mark.parametrize(
    ("model_type", "given"),
    [*itertools.product(NESTED, ["absent", "empty", "type only", "some"]), *itertools.product(FLAT, ["absent"])],
)
def test_defaults_are_those_of_transformers(model_type, given):
    facts = generated()["types"][model_type]
    key, kind = facts["text_key"], facts["text_type"]
    some = {"model_type": kind, "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 4}
    some["num_key_value_heads"] = 8
    inner = {"empty": {}, "type only": {"model_type": kind}, "some": some}
    config = {"model_type": model_type, **({} if given == "absent" else {key: inner[given]})}
    text = meta.config_of(config).get_text_config(decoder=True)

    read = read_settings(config, text_type=kind).text_config

    rebuilt = meta.plain_text_config(meta.config_of({**read, "model_type": kind}, kind=type(text)))
    wanted = meta.plain_text_config(text)
    rebuilt.pop("tie_word_embeddings", None)
    wanted.pop("tie_word_embeddings", None)
    assert rebuilt == wanted


@pytest.mark.parametrize("model_type", sorted(tiny.TINY))
def test_a_tied_head_is_told_as_transformers_tells_it(model_type):
    facts = generated()["types"][model_type]
    key, raw = facts["text_key"], tiny_configs.RAW[model_type]
    for top, inner in itertools.product((None, True, False), repeat=2):
        config = {**raw, "model_type": model_type}
        if top is not None:
            config["tie_word_embeddings"] = top
        if inner is not None and key:
            config[key] = {**raw[key], "tie_word_embeddings": inner}
        wanted = bool(getattr(meta.config_of(config), "tie_word_embeddings", False))
        assert read_settings(config, text_type=facts["text_type"]).tied is wanted, (top, inner)
