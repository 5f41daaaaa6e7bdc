"""A recipe against a catalogue of methods, and the resolved recipe."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mcompose.errors import RecipeError
from mcompose.methods.core.method import REQUIRED, Parameter
from mcompose.recipe import (
    LoadedRecipe,
    Recipe,
    check_method,
    load_recipe,
    parse_recipe,
    recipe_text,
    resolve,
    resolve_text,
    settings_for,
)
from mcompose.recipe.select import Setting


@dataclass(frozen=True)
class Method:
    parameters: tuple[Parameter, ...] = ()
    base: str = "unused"
    min_sources: int = 1
    max_sources: int | None = None
    weighted: bool = True


CATALOGUE = {
    "linear": Method((Parameter("normalize", True, kind=bool),)),
    "ties": Method(
        (
            Parameter("density", 1.0, per_source=True, low=0.0, high=1.0),
            Parameter("lambda", 1.0),
            Parameter("rescale", "none", kind=str, choices=("none", "mergekit"), words={True: "mergekit"}),
        ),
        base="required",
    ),
    "slerp": Method((Parameter("t", REQUIRED),), min_sources=2, max_sources=2, weighted=False),
    "karcher": Method((Parameter("max_iter", 10, kind=int, low=0), Parameter("tol", 1e-5, low=0.0))),
    "weight-mix": Method((Parameter("beta", 0.5),), min_sources=2, max_sources=2, weighted=False),
    "passthrough": Method(max_sources=1),
}


def parse(merge, *, base="", sources=("a", "b")):
    lines = [f"  - {{name: {name}, model: 'hub:o/{name}'}}" for name in sources]
    head = ["schema: 1", "name: x", *([f"base: {base}"] if base else ["# no base"]), "sources:", *lines, "merge:"]
    body = ["  " + line for line in merge.split("\n")]
    return parse_recipe("\n".join([*head, *body]), path=Path("r.yaml"))


SCE = "mergekit:sce"
GOOD = {
    "method: linear": Setting("linear"),
    "method: linear\nparameters: {normalize: [true, false]}": Setting("linear", None, {"normalize": True}),
    "method: slerp\nparameters: {t: [0, 1]}": Setting("slerp", None, {"t": 0.5}),
    "method: slerp\nparameters: {t: [{filter: mlp, value: 0.1}, {value: 0.5}]}": Setting("slerp", None, {"t": 0.1}),
    "method: karcher\nparameters: {max_iter: 3, tol: 1e-6}": Setting("karcher", None, {"max_iter": 3, "tol": 1e-6}),
    "method: weight-mix\nweights: {a: 0.3, b: 0.7}": Setting("weight-mix", None, {"beta": 0.3}),
    f"method: {SCE}\nparameters: {{select_topk: 0.5}}": Setting(SCE, None, {"select_topk": 0.5}),
    "method: linear\noverrides:\n  - {match: {part: language}, method: slerp, parameters: {t: 0.5}}": Setting(
        "slerp", None, {"t": 0.5}
    ),
}
"""What may be asked for, and what it says of a tensor of the middle layer."""


def middle(loaded: LoadedRecipe) -> Setting:
    merge = loaded.recipe.merge
    place = {"part": "language", "layer": 1, "num_layers": 3, "name": "layers.1.mlp.up_proj.weight"}
    return settings_for(merge, sources=("a", "b"), **place)


@pytest.mark.parametrize("merge", GOOD)
def test_what_can_be_run_passes_and_says_what_is_run(merge):
    loaded = parse(merge)
    check_method(loaded, CATALOGUE)
    assert middle(loaded) == GOOD[merge]


def test_slices_of_single_sources_pass_where_the_method_takes_one():
    slices = "slices:\n" + "".join(f"  - sources: [{{source: {name}, layer_range: [0, 2]}}]\n" for name in "ab")
    loaded = parse(f"method: passthrough\n{slices}")
    check_method(loaded, CATALOGUE)
    assert [piece.names for piece in loaded.recipe.merge.slices] == [("a",), ("b",)]
    with pytest.raises(RecipeError, match="'passthrough' takes exactly 1 source"):
        check_method(parse("method: passthrough"), CATALOGUE)


def test_methods_with_a_base_pass():
    loaded = parse(
        "method: ties\nweights: {a: 1, b: 1}\nparameters: {density: {a: 0.2, b: [0, 1]}, rescale: true}",
        base="hub:o/z",
    )
    check_method(loaded, CATALOGUE)
    assert middle(loaded) == Setting("ties", (1.0, 1.0), {"density": (0.2, 0.5), "rescale": True})
    named = parse("method: ties\nparameters: {rescale: mergekit}", base="hub:o/z")
    check_method(named, CATALOGUE)
    assert middle(named) == Setting("ties", None, {"rescale": "mergekit"})


BAD = {
    "method: liner": (8, "is not a known method: 'liner'", "Did you mean 'linear'?"),
    "method: 'mergekit:'": (8, "is not a known method: 'mergekit:'", ""),
    "method: linear\nparameters: {normalise: true}": (9, "has no parameter 'normalise'", "'normalize'"),
    "method: linear\nparameters:\n  normalize: 3": (10, "'normalize' must be true or false, not '3'", ""),
    "method: linear\nparameters:\n  normalize: {a: true, b: true}": (10, "one value for all sources", "Write one"),
    "method: ties": (8, "'ties' needs a base", "base: hub:org/name"),
    "method: slerp": (7, "'slerp' needs the parameter 't'", ""),
    "method: slerp\nweights: {a: 1, b: 0}\nparameters: {t: 0}": (9, "'slerp' does not take weights", "Leave"),
    "method: slerp\nparameters:\n  t: [{filter: mlp, value: 1}]": (10, "no value for some tensors", "End the list"),
    "method: slerp\nparameters:\n  t: half": (10, "'t' must be a number, not 'half'", ""),
    "method: slerp\nparameters:\n  t:\n  - 0.1\n  - true": (12, "'merge.parameters.t[1]' differs in kind", ""),
    "method: karcher\nparameters: {max_iter: 2.5}": (9, "must be a whole number, not '2.5'", ""),
    "method: karcher\nparameters: {max_iter: [1, 3]}": (9, "cannot be a gradient", ""),
    "method: karcher\nparameters: {max_iter: -1}": (9, "'max_iter' is -1; it must be at least 0", ""),
    "method: passthrough": (8, "'passthrough' takes exactly 1 source, not 2", ""),
    "method: linear\noverrides:\n  - match: {part: head}\n    method: lnear": (
        11,
        "is not a known method: 'lnear'",
        "'linear'",
    ),
    "method: linear\noverrides:\n  - match: {part: head}\n    parameters: {t: 1}": (11, "no parameter 't'", ""),
    "method: linear\noverrides:\n  - match: {part: head}\n    method: slerp": (10, "needs the parameter 't'", ""),
    "method: passthrough\nslices:\n  - sources:\n    - {source: a, layer_range: [0, 2]}\n"
    "    - {source: b, layer_range: [0, 2]}": (10, "exactly 1 source, not 2", ""),
}


@pytest.mark.parametrize("merge", BAD)
def test_what_cannot_be_run_is_told_with_its_line(merge):
    line, message, hint = BAD[merge]
    with pytest.raises(RecipeError) as caught:
        check_method(parse(merge), CATALOGUE)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert (caught.value.file, caught.value.line) == ("r.yaml", line)


def test_values_of_a_base_method_are_checked():
    def error(parameters):
        with pytest.raises(RecipeError) as caught:
            check_method(parse(f"method: ties\nparameters:\n  {parameters}", base="hub:o/z"), CATALOGUE)
        return caught.value.line, caught.value.message.split(": ", 1)[1]

    assert error("density: {a: 0.5, b: 1.5}") == (10, "'density' is 1.5; it must be 0.0 to 1.0.")
    assert error("rescale: nine") == (10, "'rescale' cannot be 'nine'.")


def test_exactly_two():
    with pytest.raises(RecipeError, match="'slerp' takes exactly 2 sources, not 3"):
        check_method(parse("method: slerp\nparameters: {t: 0}", sources=("a", "b", "c")), CATALOGUE)


def test_a_plain_recipe_is_checked_too():
    recipe = parse("method: linear").recipe
    check_method(recipe, CATALOGUE)
    other = recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"method": "liner"})})
    with pytest.raises(RecipeError, match="is not a known method: 'liner'"):
        check_method(other, CATALOGUE)


def test_a_loaded_recipe_points_at_its_keys():
    loaded = parse("method: linear\nweights: {a: 1, b: 2}")
    error = loaded.error("this weight is odd.", at=("merge", "weights", "b"))
    assert str(error) == "r.yaml:9: this weight is odd."
    assert isinstance(loaded, LoadedRecipe)
    assert replace(loaded, notes=("x",)).notes == ("x",)


# --- resolved ------------------------------------------------------------------------------------------------------

FULL = """\
schema: 1
name: a full one
base: hub:o/z@main
sources:
  - {name: a, model: 'hub:o/a@main', modalities: [image, points], adapter: 'hub:o/lora'}
  - {name: b, model: 'local:../b', modalities: [], adapter: 'local:lora'}
merge:
  method: ties
  weights: {a: [0, 1e-3], b: [{filter: '*', value: [1, 2]}]}
  parameters: {density: {a: 0.25, b: [{filter: mlp, value: 0.5}, {value: 1}]}, lambda: .5}
  overrides:
    - {match: {part: language, layers: [0, 3], key: '*1e5*'}, weights: {a: 1, b: 0}}
    - {match: {part: head}, method: linear, parameters: {normalize: [true, false]}}
  slices:
    - {sources: [{source: a, layer_range: [0, 4]}, {source: base, layer_range: [0, 4]}], parameters: {lambda: 2}}
  dtype: float32
  seed: 18446744073709551615
  tokenizer: b
output: {dir: out/x y, format: text, max_shard_size: 1.5GiB}
"""


def test_the_resolved_recipe_fills_in_and_loads_again():
    recipe = parse_recipe(FULL, path=Path("r.yaml")).recipe
    commits = {"base": "0" * 40, "a": "1" * 40, "a:adapter": "2" * 40, "b": "3" * 40}
    digests = {"a": {"model.safetensors": "sha256:1e10"}, "base": {}}
    text = resolve_text(recipe, commits=commits, digests=digests, catalogue=CATALOGUE)
    again = parse_recipe(text, path=Path("resolved.yaml")).recipe
    assert again == resolve(recipe, commits=commits, digests=digests, catalogue=CATALOGUE)
    assert str(again.base) == "hub:o/z@" + "0" * 40
    assert str(again.sources[0].model) == "hub:o/a@" + "1" * 40
    assert str(again.sources[0].adapter) == "hub:o/lora@" + "2" * 40
    assert str(again.sources[1].model) == "local:../b"
    assert again.merge.parameters["rescale"] == "none"
    assert again.merge.parameters["lambda"] == 0.5
    assert again.merge.overrides == recipe.merge.overrides
    assert again.output == recipe.output
    assert again.output.max_shard_size == 1_610_612_736
    assert again.resolved.digests == digests
    # Resolving is a new value, and resolving again changes nothing.
    assert recipe.resolved is None
    assert resolve_text(again, commits={}, digests=digests) == text


def test_a_recipe_survives_being_written():
    recipe = parse_recipe(FULL, path=Path("r.yaml")).recipe
    assert parse_recipe(recipe_text(recipe), path=Path("r.yaml")).recipe == recipe


def test_defaults_of_weight_mix_leave_its_weights_alone():
    recipe = parse("method: weight-mix\nweights: {a: 0.3, b: 0.7}").recipe
    assert resolve(recipe, commits={}, catalogue=CATALOGUE).merge.parameters == {}
    text = resolve_text(recipe, commits={}, catalogue=CATALOGUE)
    assert parse_recipe(text, path=Path("r.yaml")).recipe.merge.weights == {"a": 0.3, "b": 0.7}


@pytest.mark.parametrize(
    ("size", "count"),
    [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("2GiB", 2**31), ("0.5KiB", 512), ("7", 7), ("64k", 64_000), (9, 9)],
)
def test_sizes(size, count):
    recipe = {
        "schema": 1,
        "name": "x",
        "sources": [{"name": "a", "model": "hub:o/a"}],
        "merge": {"method": "linear"},
        "output": {"max_shard_size": size},
    }
    assert Recipe.model_validate(recipe).output.max_shard_size == count


def test_bytes_and_text_are_kept(tmp_path):
    path = tmp_path / "r.yaml"
    raw = ("\ufeff" + FULL.replace("a full one", "naïve").replace("\n", "\r\n")).encode()
    path.write_bytes(raw.replace("naïve".encode(), b"naive"))
    loaded = load_recipe(path)
    assert loaded.raw == path.read_bytes()
    assert loaded.text.encode() == loaded.raw
    assert loaded.folder == tmp_path
    assert loaded.recipe.name == "naive"


def test_the_recipe_is_frozen():
    recipe = parse("method: linear").recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "y"


def import_alone() -> tuple[float, list[str]]:
    """CPU seconds of the import, and the heavy libraries that came with it."""
    code = (
        "import time, sys; start = time.process_time(); import mcompose.recipe; "
        "seconds = time.process_time() - start; "
        "heavy = {'torch', 'numpy', 'transformers', 'safetensors', 'huggingface_hub', 'mergekit', 'numba'}; "
        "print(seconds, *sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *heavy = run.stdout.split()
    return float(seconds), heavy


def test_the_room_imports_nothing_heavy():
    assert import_alone()[1] == []


@pytest.mark.cost
def test_the_room_is_light():
    assert min(import_alone()[0] for _ in range(5)) < 0.15
