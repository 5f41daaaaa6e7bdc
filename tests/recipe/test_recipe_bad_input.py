"""Everything that can be wrong with a recipe: each gives one sentence with file, line, key and what to do."""

import pytest
from recipe_failures import GOOD, failure, write

from mcompose.recipe import load_recipe


def test_the_good_one_is_good(tmp_path):
    assert load_recipe(write(tmp_path, GOOD)).recipe.source_names == ("sees", "hears")


# (what to replace, with what, line, words of the message, words of the hint)
CASES = {
    "misspelt top key": ("merge:", "merg:", 10, "'merg' is not a known key", "Did you mean 'merge'?"),
    "misspelt source key": ("modalities:", "modalites:", 7, "'sources[0].modalites'", "Did you mean 'modalities'?"),
    "misspelt required key": ("  method: linear", "  methd: linear", 11, "'merge.methd'", "Did you mean 'method'?"),
    "foreign key": ("  dir: build/pair", "  zebra: 1", 14, "'output.zebra'", "Known names: dir, format"),
    "no schema": ("schema: 1\n", "", 0, "the recipe lacks the key 'schema'", ""),
    "other schema": ("schema: 1", "schema: 2", 1, "'schema' cannot be 2", "Write 'schema: 1'."),
    "no name": ("name: pair\n", "", 0, "the recipe lacks the key 'name'", ""),
    "empty name": ("name: pair", "name:", 2, "'name'", "letters"),
    "no model": ("    model: local:hears\n", "", 8, "'sources[1]' lacks the key 'model'", ""),
    "no method": ("  method: linear\n", "", 10, "'merge' lacks the key 'method'", ""),
    "bare reference": (
        "hub:org/base",
        "org/base",
        3,
        "'base': 'org/base' must begin with 'hub:' or 'local:'",
        "'hub:org/base'",
    ),
    "bare reference, local spelling": ("hub:org/sees", "org/sees", 6, "'sources[0].model'", "'local:org/sees'"),
    "broken reference": ("hub:org/sees", "hub:org/sees@", 6, "'hub:org/sees@' is not", "hub:org/name@revision"),
    "reference is a number": ("hub:org/sees", "7", 6, "'sources[0].model' must be", ""),
    "unknown modality": ("[image]", "[image, vidio]", 7, "'sources[0].modalities[1]'", "Did you mean 'video'?"),
    "modality is text": ("[image]", "image", 7, "'sources[0].modalities' must be a list, not 'image'", ""),
    "modality twice": ("[image]", "[image, image]", 7, "names 'image' twice", ""),
    "name with a dot": ("name: hears", "name: he.ars", 8, "'sources[1].name' cannot be 'he.ars'", "63 letters"),
    "name with an open end": ("name: hears", "name: hears_", 8, "'sources[1].name' cannot be 'hears_'", "63 letters"),
    "name of digits": ("name: hears", "name: 2", 8, "'sources[1].name'", "letter"),
    "name base": ("name: hears", "name: base", 8, "cannot be 'base'", "top-level"),
    "name twice": (
        "name: hears",
        "name: sees",
        8,
        "'sources[1].name' is 'sees', as is 'sources[0].name'",
        "different name",
    ),
    "unknown source in weights": ("hears: 0.5}", "heers: 0.5}", 12, "'merge.weights.heers'", "Did you mean 'hears'?"),
    "source left out of weights": (
        ", hears: 0.5}",
        "}",
        12,
        "'merge.weights' leaves out the source 'hears'",
        "hears: 0",
    ),
    "weight is a word": ("hears: 0.5", "hears: half", 12, "'merge.weights.hears' must be a number, not 'half'", ""),
    "weight is a switch": ("hears: 0.5", "hears: yes", 12, "must be a number, not true", ""),
    "weight is nan": ("hears: 0.5", "hears: .nan", 12, "'merge.weights.hears' must be finite", ""),
    "weight is infinite": ("hears: 0.5", "hears: [0.1, -.inf]", 12, "'merge.weights.hears[1]' must be finite", ""),
    "weight is empty": ("hears: 0.5", "hears:", 12, "'merge.weights.hears' has no value", ""),
    "weight is an empty list": ("hears: 0.5", "hears: []", 12, "is an empty list", ""),
    "mixed gradient": ("hears: 0.5", "hears: [0.5, x]", 12, "differs in kind", ""),
    "choice misspelt": ("hears: 0.5", "hears: [{filtre: x, value: 1}]", 12, "hears[0].filtre'", "'filter'"),
    "choice among numbers": ("hears: 0.5", "hears: [{value: 1}, 2]", 12, "hears[1]'", ""),
    "choice without value": ("hears: 0.5", "hears: [{filter: x}]", 12, "hears[0].value' has no value", ""),
    "weights is a list": ("{sees: 0.5, hears: 0.5}", "[0.5, 0.5]", 12, "'merge.weights' must be a mapping", ""),
    "unknown dtype": ("output:", "  dtype: bf16\noutput:", 13, "'merge.dtype' is not a known dtype", "'bfloat16'"),
    "torch dtype": ("output:", "  dtype: torch.float32\noutput:", 13, "'merge.dtype'", "'float32'"),
    "half": ("output:", "  dtype: half\noutput:", 13, "'merge.dtype'", "'float16'"),
    "negative seed": ("output:", "  seed: -1\noutput:", 13, "'merge.seed'", ""),
    "seed is text": ("output:", "  seed: '3'\noutput:", 13, "'merge.seed' must be a whole number, not '3'", ""),
    "seed is a fraction": ("output:", "  seed: 1.5\noutput:", 13, "'merge.seed' must be a whole number", ""),
    "seed is a switch": ("output:", "  seed: true\noutput:", 13, "'merge.seed' must be a whole number, not true", ""),
    "unknown format": ("output:", "output:\n  format: nativ", 14, "'output.format'", "Did you mean 'native'?"),
    "bad size": ("output:", "output:\n  max_shard_size: big", 14, "is not a size: 'big'", "5GB"),
    "zero size": ("output:", "output:\n  max_shard_size: 0GB", 14, "must be more than zero", ""),
    "tokenizer of nobody": ("output:", "  tokenizer: seas\noutput:", 13, "'merge.tokenizer'", "Did you mean 'sees'?"),
    "override without match": (
        "output:",
        "  overrides:\n    - weights: {sees: 1, hears: 0}\noutput:",
        14,
        "'merge.overrides[0]' lacks the key 'match'",
        "",
    ),
    "override of nothing": (
        "output:",
        "  overrides:\n    - match: {part: head}\noutput:",
        14,
        "'merge.overrides[0]' changes nothing",
        "weights",
    ),
    "override matches nothing": (
        "output:",
        "  overrides:\n    - match: {}\n      method: linear\noutput:",
        14,
        "'merge.overrides[0].match' does not have a condition",
        "'part'",
    ),
    "unknown part": (
        "output:",
        "  overrides:\n    - match: {part: lang}\n      method: linear\noutput:",
        14,
        "'merge.overrides[0].match.part'",
        "Did you mean 'language'?",
    ),
    "layers backwards": (
        "output:",
        "  overrides:\n    - match: {layers: [5, 2]}\n      method: linear\noutput:",
        14,
        "'merge.overrides[0].match.layers' must be [first, last]",
        "from 0",
    ),
    "layers of three": (
        "output:",
        "  overrides:\n    - match: {layers: [0, 1, 2]}\n      method: linear\noutput:",
        14,
        "'merge.overrides[0].match.layers' must have 2 items, not 3",
        "",
    ),
    "no stage": ("output:", "align: {stages: {}}\noutput:", 13, "'align.stages' is empty", ""),
    "override leaves a source out": (
        "output:",
        "  overrides:\n    - match: {part: head}\n      weights: {sees: 1}\noutput:",
        15,
        "'merge.overrides[0].weights' leaves out the source 'hears'",
        "",
    ),
    "parameter of an unknown source": (
        "output:",
        "  parameters:\n    density: {sees: 1, heras: 1}\noutput:",
        14,
        "'merge.parameters.density.heras'",
        "Did you mean 'hears'?",
    ),
    "parameter leaves a source out": (
        "output:",
        "  parameters:\n    density: {sees: 1}\noutput:",
        14,
        "'merge.parameters.density' leaves out the source 'hears'",
        "",
    ),
    "parameter is empty": ("output:", "  parameters:\n    density:\noutput:", 14, "density' has no value", ""),
    "slices of two lengths": (
        "output:",
        "  slices:\n    - sources:\n      - {source: sees, layer_range: [0, 4]}\n"
        "      - {source: hears, layer_range: [0, 3]}\noutput:",
        16,
        "has 3 layers, but the slice's first has 4",
        "same length",
    ),
    "slice of nobody": (
        "output:",
        "  slices:\n    - sources: [{source: hear, layer_range: [0, 3]}]\noutput:",
        14,
        "'hear' is not a source",
        "Did you mean 'hears'?",
    ),
    "empty slice": (
        "output:",
        "  slices:\n    - sources: [{source: sees, layer_range: [3, 3]}]\noutput:",
        13,
        "'merge.slices' have no layers",
        "Give one of them a range of layers.",
    ),
    "backward slice": (
        "output:",
        "  slices:\n    - sources: [{source: sees, layer_range: [3, 2]}]\noutput:",
        14,
        "must be [first, end]",
        "not included",
    ),
    "no sources": ("sources:\n", "sources: []\nother:\n", 5, "'other'", "Known names"),
    "sources is a mapping": ("  - name: sees\n", "    name: sees\n", 8, "not valid YAML", "indentation"),
    "key twice": ("  method: linear\n", "  method: linear\n  method: ties\n", 12, "'merge.method' is set twice", ""),
    "key twice in a flow": (
        "{sees: 0.5, hears",
        "{sees: 0.5, sees: 0.5, hears",
        12,
        "set twice; the first is on line 12",
        "",
    ),
    "tab": ("  method: linear", "\tmethod: linear", 11, "not valid YAML", "tabs"),
    "open bracket": ("[image]", "[image", 8, "not valid YAML", ""),
    "unknown anchor": ("[image]", "*nope", 7, "undefined alias", ""),
    "python object": ("name: pair", "name: !!python/name:os.system x", 2, "has the tag", "Remove it"),
    "binary value": ("name: pair", "name: !!binary aGk=", 2, "has the tag", ""),
    "set": ("[image]", "!!set {image}", 7, "has the tag", ""),
    "anchor in itself": ("[image]", "&a [*a]", 7, "contains itself", ""),
    "list as key": ("name: pair", "? [a]\n: b\nname: pair", 2, "a key is not text or a whole number", "quotes"),
    "switch as key": ("name: pair", "on: b\nname: pair", 2, "a key is not text or a whole number", "quotes"),
    "two documents": ("output:", "---\noutput:", 13, "several YAML documents", "into its own file"),
    "number without end": ("name: pair", "name: " + "9" * 5000, 2, "'name' is not a valid value", ""),
    "merge key of nothing": ("output:", "output:\n  <<: 3", 14, "'<<' in 'output' does not name a mapping", ""),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_mistake(tmp_path, case):
    old, new, line, message, hint = CASES[case]
    assert GOOD.count(old) >= 1
    found_line, found_message, found_hint = failure(tmp_path, GOOD.replace(old, new, 1))
    assert message in found_message
    assert hint in found_hint
    assert found_line == line


LATER_MISTAKES = {
    "compose:\n  decoupel: none": (14, "'compose.decoupel'", "'decouple'"),
    "compose:\n  decouple: convrt": (14, "'compose.decouple'", "'convert'"),
    "compose:\n  groups: dens": (14, "'compose.groups'", "'dense'"),
    "compose: {decouple: donor, towers: merge}": (
        13,
        "'compose.towers: merge'",
        "every source then keeps its own towers",
    ),
    "compose:\n  experts: {c: {encoder: 'hub:o/c', domian: x}}": (14, "'compose.experts.c.domian'", "'domain'"),
    "compose:\n  experts:\n    c:\n      encoder: o/c\n      domain: x": (
        16,
        "'compose.experts.c.encoder'",
        "'hub:o/c'",
    ),
    "compose:\n  vision_mix: {encoders: {c: {encoder: 'hub:o/c'}}, views: {overview: frist}}": (
        14,
        "'compose.vision_mix.views.overview'",
        "'first'",
    ),
    "compose:\n  adapters: {mm: {mode: tokens}}": (14, "'compose.adapters.mm.mode'", "'token'"),
    "align:\n  stages:\n    1:\n      train: [head]\n      stps: 3": (17, "'align.stages[1].stps'", "'steps'"),
    "align:\n  stages:\n    first: {train: [head]}": (15, "'align.stages.first", ""),
    "align:\n  stages: {1: {train: [head], gscm: {ratio: 2}}}": (14, "ratio'", ""),
}


@pytest.mark.parametrize("text", LATER_MISTAKES, ids=lambda text: text.split()[1])
def test_later_sections_are_parsed_not_skipped(tmp_path, text):
    line, message, hint = LATER_MISTAKES[text]
    found_line, found_message, found_hint = failure(tmp_path, GOOD.replace("output:", text + "\noutput:"))
    assert message in found_message
    assert hint in found_hint
    assert found_line == line


def test_a_recipe_without_sources(tmp_path):
    text = "schema: 1\nname: x\nsources: []\nmerge: {method: linear}\n"
    hint = "Name at least one source, or mixed image encoders in 'compose.vision_mix' beside a base."
    assert failure(tmp_path, text) == (3, "'sources' is empty.", hint)


def test_deep_inside_lists_the_line_is_of_the_item(tmp_path):
    text = GOOD.replace("[image]", "\n      - image\n      - audio\n      - smell")
    line, message, _ = failure(tmp_path, text)
    assert (line, "'sources[0].modalities[2]'" in message) == (10, True)


def test_weight_mix_takes_two_sources_and_one_way_to_say_the_shares(tmp_path):
    both = GOOD.replace("linear", "weight-mix").replace("output:", "  parameters: {beta: 0.3}\noutput:")
    line, message, hint = failure(tmp_path, both)
    assert line == 13
    assert "'merge.parameters.beta' and 'weights' cannot both be set" in message
    assert "share of the first" in hint
    third = "  - {name: reads, model: 'hub:o/r'}\nmerge:"
    three = (
        GOOD.replace("merge:", third, 1)
        .replace("linear", "weight-mix")
        .replace("  weights: {sees: 0.5, hears: 0.5}\n", "")
    )
    line, message, hint = failure(tmp_path, three)
    assert (line, "exactly two sources, not 3" in message, hint) == (12, True, "Use 'linear' for more.")
