"""mergekit files: what they become, what is refused, what is said to have no effect.

That the settings of every tensor are mergekit's own is shown in ``tests/conformance/test_recipe_gradients.py``.
"""

import pytest

from mcompose.errors import RecipeError
from mcompose.recipe import load_recipe, parse_recipe, resolve, resolve_text
from mcompose.refs import ModelRef

GOOD = """\
models:
  - model: org/one@v1
    parameters:
      weight: 0.5
  - model: org/two+org/lora@v2
    parameters:
      weight: 0.5
merge_method: ties
base_model: org/origin
parameters:
  density: 0.5
dtype: bfloat16
"""


def load(tmp_path, text):
    path = tmp_path / "my merge (2).yml"
    path.write_text(text)
    return load_recipe(path)


def failure(tmp_path, text):
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    return caught.value.line, caught.value.message, caught.value.hint


def test_a_plain_merge_becomes_a_recipe(tmp_path):
    loaded = load(tmp_path, GOOD)
    recipe = loaded.recipe
    assert (loaded.origin, loaded.text, loaded.notes) == ("mergekit", GOOD, ())
    assert recipe.name == "my merge -2"
    assert recipe.base == ModelRef("hub", "org/origin")
    assert [(s.name, str(s.model), s.adapter and str(s.adapter)) for s in recipe.sources] == [
        ("one", "hub:org/one@v1", None),
        ("lora", "hub:org/two", "hub:org/lora@v2"),
    ]
    assert recipe.merge.method == "ties"
    assert recipe.merge.weights == {"one": 0.5, "lora": 0.5}
    assert recipe.merge.parameters == {"density": 0.5}
    assert recipe.merge.dtype == "bfloat16"
    assert recipe.output.dir is None
    assert recipe.align is None


def test_folders_beside_the_file_are_local(tmp_path):
    (tmp_path / "org" / "one").mkdir(parents=True)
    text = GOOD.replace("org/one@v1", "org/one").replace("org/origin", "./elsewhere").replace("org/two", "/abs/two")
    recipe = load(tmp_path, text).recipe
    assert [str(s.model) for s in recipe.sources] == ["local:org/one", "local:/abs/two"]
    assert str(recipe.base) == "local:./elsewhere"
    line, message, _ = failure(tmp_path, GOOD)
    assert (line, "'org/one' is a folder and cannot have the revision 'v1'" in message) == (2, True)


def test_names_are_made_unique_and_usable(tmp_path):
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n" + "".join(
        f"  - model: {path}\n" for path in ("a/7B.v1", "b/7B.v1", "c/base", "d/x_y-z", "e/...")
    )
    line, message, _ = failure(tmp_path, text)
    assert (line, "'hub:e/...' is not a Hub reference" in message) == (8, True)
    recipe = load(tmp_path, text.replace("  - model: e/...\n", "")).recipe
    assert recipe.source_names == ("model-7B-v1", "model-7B-v1-2", "model-base", "x_y-z")


def test_long_names_and_double_underscores_are_made_usable_too(tmp_path):
    """The user did not choose them as names: they are only what the repository is called."""
    long = "m" * 90
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n" + "".join(
        f"  - model: {path}\n" for path in ("a/merged__v2", f"a/{long}", f"b/{long}")
    )
    recipe = load(tmp_path, text).recipe
    assert recipe.source_names == ("merged_v2", "m" * 56, "m" * 56 + "-2")
    assert str(recipe.sources[1].model) == f"hub:a/{long}"


def test_dictionaries_for_models_are_read(tmp_path):
    spelled = "{model: {path: org/two, revision: main}, lora: {path: org/lora, revision: v2}}"
    recipe = load(tmp_path, GOOD.replace("org/two+org/lora@v2", spelled)).recipe
    assert str(recipe.sources[1].model) == "hub:org/two@main"
    assert str(recipe.sources[1].adapter) == "hub:org/lora@v2"


@pytest.mark.parametrize(
    ("method", "base", "sources"),
    [
        ("linear", None, ("one", "origin")),
        ("karcher", None, ("one", "origin")),
        ("slerp", None, ("origin", "one")),
        ("task_arithmetic", "hub:org/origin", ("one",)),
        ("model_stock", "hub:org/origin", ("one",)),
        ("nearswap", "hub:org/origin", ("one",)),
    ],
)
@pytest.mark.parametrize("is_listed", [True, False])
def test_the_base_plays_the_part_that_it_has_in_mergekit(tmp_path, method, base, sources, is_listed):
    listed = ", {model: org/origin}" if is_listed else ""
    text = (
        f"merge_method: {method}\nbase_model: org/origin\nmodels: [{{model: org/one}}{listed}]\n"
        "parameters: {weight: 1, t: 0.5}\n"
    )
    recipe = load(tmp_path, text).recipe
    assert (recipe.base and str(recipe.base)) == base
    assert recipe.source_names == sources


def test_dtypes(tmp_path):
    assert load(tmp_path, GOOD + "out_dtype: torch.float16\n").recipe.merge.dtype == "float16"
    line, message, hint = failure(tmp_path, GOOD.replace("bfloat16", "int64"))
    assert (line, "not a known dtype: 'int64'" in message) == (12, True)
    assert "bfloat16" in hint


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tokenizer_source: base", "base"),
        ("tokenizer_source: org/one@v1", "one"),
        ("tokenizer: {source: org/one@v1}", "one"),
        ("tokenizer: {source: base, tokens: {}}", "base"),
        ("tokenizer_source: org/origin", "base"),
    ],
)
def test_simple_tokenizer_choices(tmp_path, line, expected):
    assert load(tmp_path, GOOD + line + "\n").recipe.merge.tokenizer == expected


def test_settings_without_effect_are_told(tmp_path):
    text = GOOD.replace("  density: 0.5\n", "  density: 0.5\n  int8_mask: true\n").replace(
        "merge_method:",
        "  - model: org/origin\n    parameters: {weight: 3}\n  - model: org/x\n"
        "    parameters: {weight: 1, lambda: 3}\nmerge_method:",
    )
    notes = load(tmp_path, text).notes
    assert sorted(note.split("yml:")[1] for note in notes) == [
        "11: 'lambda' of one model has no effect, as in mergekit.",
        "16: 'int8_mask' has no effect: mergekit's ties does not use it for the result.",
        "9: parameters of the base have no effect, as in mergekit.",
    ]


def test_silence_about_rescaling_means_mergekits(tmp_path):
    text = GOOD.replace("ties", "dare_linear")
    assert load(tmp_path, text).recipe.merge.parameters == {"rescale": "mergekit", "density": 0.5}
    off = text.replace("  density: 0.5\n", "  rescale: false\n")
    assert load(tmp_path, off).recipe.merge.parameters == {"rescale": "none"}


CASES = {
    "misspelt top key": ("dtype:", "dtyp:", 12, "'dtyp' is not a known key", "'dtype'"),
    "misspelt parameters": ("parameters:\n  density", "paramters:\n  density", 10, "'paramters'", "'parameters'"),
    "misspelt model key": ("model: org/one@v1", "modle: org/one@v1", 2, "'models[0].modle'", "'model'"),
    "no method": ("merge_method: ties\n", "", 0, "lacks the key 'merge_method'", ""),
    "no weight": (
        "      weight: 0.5\n  - model",
        "      density: 0.5\n  - model",
        2,
        "'org/one' has no 'weight'",
        "mergekit requires",
    ),
    "weight is a word": ("weight: 0.5", "weight: lots", 4, "must be a number, not 'lots'", ""),
    "two revisions": ("org/one@v1", "org/one@v1@v2", 2, "has a revision that cannot be read", "org/name@revision"),
    "two adapters": ("org/two+org/lora@v2", "a/b+c/d+e/f", 5, "several adapters", ""),
    "listed twice": ("org/two+org/lora@v2", "org/one@v1", 5, "'org/one' is listed twice", "Remove"),
    "adapter on the base": ("org/origin", "org/origin+a/b", 9, "a base with an adapter is not built yet", "Merge"),
    "override_architecture": (
        "org/one@v1",
        "{model: org/one, override_architecture: X}",
        2,
        "override_architecture' is not built yet",
        "",
    ),
    "tokenizer tokens": (
        "dtype:",
        "tokenizer:\n  source: base\n  tokens: {x: {source: org/one}}\ndtype:",
        14,
        "'tokenizer.tokens' is not built yet",
        "",
    ),
    "padding": ("dtype:", "tokenizer: {source: base, pad_to_multiple_of: 8}\ndtype:", 12, "pad_to_multiple_of'", ""),
    "tokenizer of a stranger": ("dtype:", "tokenizer_source: org/other\ndtype:", 12, "'org/other'", "merged models"),
    "two tokenizers": (
        "dtype:",
        "tokenizer_source: base\ntokenizer: {source: base}\ndtype:",
        12,
        "'tokenizer_source' and 'tokenizer' cannot both be set",
        "",
    ),
    "chat template": ("dtype:", "chat_template: auto\ndtype:", 12, "'chat_template' is not built yet", "kept"),
    "modules": ("dtype:", "modules: {a: {}}\ndtype:", 12, "'modules' is not built yet", "'models'"),
    "slices too": (
        "dtype:",
        "slices:\n  - sources: [{model: org/one, layer_range: [0, 1]}]\ndtype:",
        0,
        "either 'models' or 'slices'",
        "",
    ),
    "slerp of three": ("ties", "slerp", 1, "slerp takes two models, one of them the base, not 3", ""),
    "slerp without base": (
        "merge_method: ties\nbase_model: org/origin",
        "merge_method: slerp",
        8,
        "'base_model'",
        "t = 0",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_mistake(tmp_path, case):
    old, new, line, message, hint = CASES[case]
    assert old in GOOD
    found_line, found_message, found_hint = failure(tmp_path, GOOD.replace(old, new, 1))
    assert message in found_message
    assert hint in found_hint
    assert found_line == line


SLICED = """\
slices:
  - sources:
      - model: org/one
        layer_range: [0, 4]
      - model: org/origin
        layer_range: [0, 4]
  - sources:
      - model: org/one
        layer_range: [4, 8]
      - model: org/origin
        layer_range: [4, 8]
merge_method: ties
base_model: org/origin
parameters: {weight: 1}
"""

SLICE_CASES = {
    "no range": ("        layer_range: [0, 4]\n", "", 3, "'slices[0].sources[0]' lacks the key 'layer_range'"),
    "range of one": ("[0, 4]", "[4]", 4, "'slices[0].sources[0].layer_range' has too few items: 1"),
    "backwards": ("[4, 8]", "[8, 4]", 9, "must be [first, end]"),
    "other length": ("[4, 8]", "[4, 7]", 11, "has 4 layers, but the slice's first has 3"),
    "residual weight": ("merge_method", "    residual_weight: 0.5\nmerge_method", 12, "has no effect in mergekit"),
    "base of its own": ("merge_method", "    base_model: org/one\nmerge_method", 12, "a different base for each slice"),
    "base left out": (
        "      - model: org/origin\n        layer_range: [0, 4]\n",
        "",
        2,
        "the slice lacks the base model",
    ),
}


@pytest.mark.parametrize("case", SLICE_CASES, ids=str)
def test_one_mistake_in_slices(tmp_path, case):
    old, new, line, message = SLICE_CASES[case]
    found_line, found_message, _ = failure(tmp_path, SLICED.replace(old, new, 1))
    assert message in found_message
    assert found_line == line


def test_slices_name_the_base_layers(tmp_path):
    recipe = load(tmp_path, SLICED).recipe
    assert recipe.source_names == ("one",)
    assert [[(e.source, e.layer_range) for e in piece.sources] for piece in recipe.merge.slices] == [
        [("one", (0, 4)), ("base", (0, 4))],
        [("one", (4, 8)), ("base", (4, 8))],
    ]


@pytest.mark.parametrize("text", [GOOD, SLICED], ids=["models", "slices"])
def test_the_resolved_recipe_is_of_schema_1_and_loads_again(tmp_path, text):
    recipe = load(tmp_path, text).recipe
    again = parse_recipe(resolve_text(recipe, commits={"one": "f" * 40}), path=tmp_path / "resolved.yaml")
    assert again.origin == "mcompose"
    assert again.recipe == resolve(recipe, commits={"one": "f" * 40})


def test_a_file_of_mergekit_multi_is_refused(tmp_path):
    _, message, _ = failure(tmp_path, GOOD + "---\n" + GOOD)
    assert "several YAML documents" in message
