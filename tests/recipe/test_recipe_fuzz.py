"""Whatever stands in the file, the answer is a recipe or a ``RecipeError``, never another exception."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mcompose.errors import RecipeError
from mcompose.recipe import parse_recipe, resolve, resolve_text
from mcompose.recipe.document import read_text

NATIVE = """\
schema: 1
name: pair
base: hub:org/base
sources:
  - {name: sees, model: 'hub:org/sees', modalities: [image], adapter: 'local:lora'}
  - {name: hears, model: 'local:hears'}
merge:
  method: linear
  weights: {sees: [0, 1], hears: [{filter: mlp, value: 1}, {value: 2}]}
  parameters: {density: {sees: 1, hears: 2}, t: [true, false]}
  overrides:
    - {match: {part: head, layers: [0, 3], key: '*'}, weights: {sees: 1, hears: 1}, method: ties, parameters: {a: 1}}
  slices:
    - {sources: [{source: sees, layer_range: [0, 2]}, {source: base, layer_range: [0, 2]}], weights: {sees: 1}}
  dtype: float32
  seed: 3
  tokenizer: base
compose: {decouple: none, experts: {x: {encoder: 'hub:a/b', domain: d}}, vision_mix: {encoders: [], tiles: {count: 1}}}
align: {stages: {1: {train: [head], data: [b], steps: 1, lr: {head: 0.1}, lora: {language: {rank: 2, targets: [q]}}}}}
output: {dir: out, format: auto, max_shard_size: 5GB}
resolved: {digests: {sees: {a: b}}}
"""
MERGEKIT = """\
slices:
  - sources:
      - {model: org/one@v, layer_range: [0, 4], parameters: {weight: [0, 1], density: [{filter: x, value: 1}]}}
      - {model: {model: {path: org/z}}, layer_range: [0, 4]}
    base_model: org/z
    parameters: {weight: 1, epsilon: 0.1}
models: [{model: org/one+a/b, parameters: {weight: 1}}]
merge_method: ties
base_model: org/z
tokenizer: {source: base}
tokenizer_source: base
parameters: {weight: {filter: y, value: [1, 2]}, normalize: 1, int8_mask: true}
dtype: bfloat16
out_dtype: float16
name: x
"""
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        ["base", "sees", "hub:a/b", "local:", "*", "-", "[]", "5GB", "slerp", "org/one", "union", "@", "+"]
    ),
    st.lists(st.integers(-3, 3) | st.text(max_size=2), max_size=3),
    st.dictionaries(
        st.text(max_size=3) | st.integers(0, 2) | st.sampled_from(["filter", "value"]), st.integers(), max_size=2
    ),
)


def paths(value, at=()):
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*at, key))


def changed(value, at, change):
    if not at:
        return change
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(copy[at[0]], at[1:], change)
    return copy


def without(value, at):
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = without(copy[at[0]], at[1:])
    return copy


def read(text):
    """The recipe of a text; None when it is refused as it should be."""
    refusal = None
    try:
        loaded = parse_recipe(text, path=Path("r.yaml"))
    except RecipeError as error:
        refusal = error
    if refusal is not None:
        assert refusal.message.startswith("r.yaml:")
        assert "{path}" not in refusal.message
        return None
    again = parse_recipe(resolve_text(loaded.recipe, commits={}), path=Path("r.yaml"))
    assert again.recipe == resolve(loaded.recipe, commits={})
    return loaded.recipe


@pytest.mark.parametrize("text", [NATIVE, MERGEKIT], ids=["native", "mergekit"])
@given(st.data())
def test_one_value_changed(text, data):
    tree = yaml.safe_load(text)
    if data.draw(st.booleans()):  # without what is refused as a whole, so that the rest is reached
        for key in ("compose", "align", "models" if data.draw(st.booleans()) else "slices", "tokenizer_source"):
            tree.pop(key, None)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.sampled_from(list(paths(tree))[1:]))
        tree = without(tree, at) if data.draw(st.booleans()) else changed(tree, at, data.draw(odd))
    read(yaml.safe_dump(tree))


@given(st.data())
def test_characters_changed(data):
    text = data.draw(st.sampled_from([NATIVE, MERGEKIT]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(start + 12, len(text))))
        text = text[:start] + data.draw(st.text(alphabet="{}[]:,-&*<!|>'\"#% \n\tab1.\x00é", max_size=4)) + text[stop:]
    read(text)


@given(st.binary(max_size=60))
def test_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError):
        parse_recipe(read_text(path)[1], path=path)


ONE_VALUE = """\
schema: 1
name: n
base: hub:org/base
sources: [{{name: sees, model: 'hub:org/sees'}}]
merge: {{method: linear, parameters: {{{0}: {0}}}}}
"""
CHARACTERS = [*range(0x100), 0x2028, 0x2029, 0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF, 0x1F600, 0x10FFFF]


@pytest.mark.parametrize("around", ["{}", "a{}b", "{}{} a", "a {} ", "word " * 14 + "{}"])
def test_every_character_survives_the_resolved_recipe(around):
    """YAML takes some of them for line breaks, and cannot hold others but as an escape: U+0085 came back as a space."""
    for character in map(chr, CHARACTERS):
        value = around.replace("{}", character)
        escaped = '"' + "".join(f"\\U{ord(letter):08X}" for letter in value) + '"'
        assert dict(read(ONE_VALUE.format(escaped)).merge.parameters) == {value: value}, repr(character)


@pytest.mark.parametrize("escape", [r"\ud800", r"\udfff", r"\ud83d\ude00", r"a\uDC80"])
def test_half_a_character_is_refused(escape):
    for text in (ONE_VALUE.format(f'"{escape}"'), f'"{escape}": 1', f'x: [1, "{escape}"]'):
        with pytest.raises(RecipeError, match=r"U\+D[0-9A-F]{3}.* is only half of a character") as caught:
            parse_recipe(text, path=Path("r.yaml"))
        assert "U0001F600" in caught.value.hint


@pytest.mark.parametrize("depth", [50, 100, 150, 200, 250, 300, 350, 400])
def test_nesting(depth):
    assert read(f"schema: 1\nx: {'[' * depth}{']' * depth}") is None
    assert read(f"schema: 1\nx: {'{a: ' * depth}1{'}' * depth}") is None
