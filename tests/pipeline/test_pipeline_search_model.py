"""The model that is merged in place: the very bytes and answers of a merge that was written and loaded."""

from pathlib import Path

import pytest
import torch
from damc_sources import write_donor, write_natives
from tiny_sources import write_family, write_language_model, write_recipe

from mcompose.compose import ComposeOptions, compose
from mcompose.errors import NumericsError
from mcompose.evaluate import load_evaluated_model
from mcompose.merge.verify import verify
from mcompose.pipeline.search.model import TrialModel, digest_of, find_parameters
from mcompose.pipeline.search.space import Settings, applied
from mcompose.recipe import load_recipe

SOURCES = [{"name": "sees", "model": "local:sees"}, {"name": "expert", "model": "local:expert"}]
TEXT = [{"name": "plain", "model": "local:base"}, {"name": "expert", "model": "local:expert"}]
ALIKE = [{"name": "sees", "model": "local:sees"}, {"name": "sees-other", "model": "local:sees-other-tower"}]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    torch.set_num_threads(1)
    return write_family(tmp_path_factory.mktemp("family"))


def scratch_of(family: Path, folder: Path, **changes):
    """The recipe, and its composition."""
    whole = {"base": "local:base", "sources": SOURCES, "merge": {"method": "linear"}, "output": {"format": "composed"}}
    loaded = load_recipe(write_recipe(family / f"{folder.name}.yaml", **{**whole, **changes}))
    compose(loaded, output=folder / "scratch", options=ComposeOptions())
    return loaded, folder / "scratch"


def state(model) -> dict:
    return dict(model.state_dict())


CASES = {
    "average, composed": ({}, Settings({"sees": 0.3, "expert": 0.7})),
    "gradient, native, bf16": (
        {"merge": {"method": "linear", "dtype": "bfloat16"}, "output": {"format": "native"}},
        Settings({"sees": (1.0, 0.2), "expert": (0.0, 0.8)}),
    ),
    "deltas with a parameter": (
        {"merge": {"method": "ties", "dtype": "bfloat16"}},
        Settings({"sees": 0.9, "expert": 0.4}, {"density": 0.37}),
    ),
    "random": (
        {"merge": {"method": "dare_ties", "seed": 5}},
        Settings({"sees": 0.9, "expert": 0.4}, {"density": 0.5}),
    ),
    "whole model": (
        {"merge": {"method": "ties-global", "parameters": {"density": 0.9}}},
        Settings(None, {"density": 0.3}),
    ),
    "towers, too": (
        {"sources": ALIKE, "compose": {"towers": "merge"}, "output": {"format": "native"}},
        Settings({"sees": 0.3, "sees-other": 0.7}),
    ),
    "text": (
        {"sources": TEXT, "output": {"format": "text"}, "merge": {"method": "naivemc", "dtype": "float16"}},
        Settings({"plain": 0.1, "expert": 0.9}),
    ),
}


def check_trial(loaded, scratch: Path, settings: Settings, *, in_place: bool) -> list[str]:
    """Holds a trial to what a merge writes; gives the names of the tensors that it changed."""
    model = TrialModel(loaded, scratch, in_place=in_place)
    assert model.in_place == in_place
    before = {name: tensor.clone() for name, tensor in state(model.subject.model).items()}
    digest = model.merge(settings)
    written = compose(applied(loaded, settings), output=scratch.parent / "written", options=ComposeOptions())
    assert digest == digest_of(written.ledger.tensors)
    wanted = state(load_evaluated_model(scratch.parent / "written").model)
    found = state(model.subject.model)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert verify(scratch).problems == (), "nobody writes into the composition that all start from"
    return [name for name in wanted if not torch.equal(found[name], before[name])]


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "reloaded"])
@pytest.mark.parametrize("case", CASES)
def test_a_trial_is_what_a_merge_writes(family, tmp_path, case, in_place):
    changes, settings = CASES[case]
    loaded, scratch = scratch_of(family, tmp_path, **changes)
    assert check_trial(loaded, scratch, settings, in_place=in_place)


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    """A base, what grew from it, and the same with groups of their own."""
    torch.set_num_threads(1)
    folder = write_natives(tmp_path_factory.mktemp("donors"))
    write_natives(folder / "base-too", change=0.0)
    for name, kind in (("sees", "low-rank"), ("sees", "dense"), ("hears", "dense")):
        write_donor(folder, folder, name, kind=kind)
    return folder


GROUPS = {"sees": ".groups.image", "hears": ".groups.audio"}
DAMC = {
    "donors": ("donor", {"sees": "sees-dense", "hears": "hears-dense"}, {}),
    "donors of two kinds": ("donor", {"sees": "sees-low-rank", "hears": "hears-dense"}, {}),
    "donors, and their groups scaled": ("donor", {"sees": "sees-dense", "hears": "hears-dense"}, {"hears": 0.5}),
    "ordinary sources": ("convert", {"sees": "sees", "hears": "hears"}, {}),
}
"""Where groups come from, the sources, and what a trial sets their groups to."""


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "reloaded"])
@pytest.mark.parametrize("case", DAMC)
def test_a_trial_of_decoupled_groups_is_what_a_merge_writes(donors, tmp_path, case, in_place):
    decouple, folders, scaled = DAMC[case]
    loaded, scratch = scratch_of(
        donors,
        tmp_path,
        sources=[{"name": name, "model": f"local:{folder}"} for name, folder in folders.items()],
        merge={"method": "damc"},
        compose={"decouple": decouple},
    )
    parameters = {"modality_weights": {"sees": 1.0, **scaled}} if scaled else {}
    changed = check_trial(loaded, scratch, Settings({"sees": 0.3, "hears": 0.8}, parameters), in_place=in_place)
    assert any(".self_attn." in name and ".groups." not in name for name in changed), "the text follows its weights"
    for name, group in GROUPS.items():
        assert any(group in one for one in changed) == (name in scaled), "a group follows its own coefficient only"


def test_a_trial_does_not_depend_on_those_before_it(family, tmp_path):
    loaded, scratch = scratch_of(family, tmp_path)
    model = TrialModel(loaded, scratch)
    first = model.merge(Settings({"sees": 0.3, "expert": 0.7}))
    tensors = {name: tensor.clone() for name, tensor in state(model.subject.model).items()}
    assert model.merge(Settings({"sees": 0.9, "expert": 0.1})) != first
    assert model.merge(Settings({"sees": 0.3, "expert": 0.7})) == first
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in state(model.subject.model).items())


def test_after_a_merge_that_is_not_finite_the_next_is_whole(family, tmp_path):
    merge = {"method": "task_arithmetic", "dtype": "float16"}
    loaded, scratch = scratch_of(family, tmp_path, merge=merge)
    model = TrialModel(loaded, scratch)
    good = Settings({"sees": 0.3, "expert": 0.7})
    digest = model.merge(good)
    with pytest.raises(NumericsError, match="not finite"):
        model.merge(Settings({"sees": 1e30, "expert": 1e30}))
    assert model.merge(good) == digest
    compose(applied(loaded, good), output=tmp_path / "written", options=ComposeOptions())
    wanted = state(load_evaluated_model(tmp_path / "written").model)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state(model.subject.model).items())


def test_a_model_that_was_loaded_in_another_dtype_gets_the_rounded_values(family, tmp_path):
    loaded, scratch = scratch_of(family, tmp_path, merge={"method": "linear", "dtype": "bfloat16"})
    model = TrialModel(loaded, scratch)
    wide = load_evaluated_model(scratch).model.float()
    plan_jobs = [job for job in compose_jobs(loaded) if job.part in ("language", "embedding", "head")]
    model._parameters = find_parameters(wide, plan_jobs, scratch)
    assert model._parameters is not None
    settings = Settings({"sees": 0.3, "expert": 0.7})
    model.merge(settings)
    compose(applied(loaded, settings), output=tmp_path / "written", options=ComposeOptions())
    wanted = state(load_evaluated_model(tmp_path / "written").model)
    assert all(torch.equal(tensor, wanted[name].float()) for name, tensor in state(wide).items())


def test_a_tensor_that_was_not_looked_for_ends_the_merging_in_place(family, tmp_path):
    loaded, scratch = scratch_of(family, tmp_path)
    model = TrialModel(loaded, scratch)
    settings = Settings({"sees": 0.3, "expert": 0.7})
    model.merge(Settings({"sees": 0.8, "expert": 0.2}))
    del model._parameters["lm_head.weight"]
    written = compose(applied(loaded, settings), output=tmp_path / "written", options=ComposeOptions())
    assert model.merge(settings) == digest_of(written.ledger.tensors)
    assert not model.in_place
    wanted = state(load_evaluated_model(tmp_path / "written").model)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in state(model.subject.model).items())


def compose_jobs(loaded):
    from mcompose.compose import make_blueprint

    return make_blueprint(loaded, weights=True).plan.jobs


def test_parameters_that_are_not_found_again_are_told(family, tmp_path):
    """A model whose values are not those of the files: fused, scaled or permuted on loading."""
    loaded, scratch = scratch_of(family, tmp_path)
    jobs = [job for job in compose_jobs(loaded) if job.part == "language"]
    model = load_evaluated_model(scratch).model
    assert set(find_parameters(model, jobs, scratch)) == {job.name for job in jobs}
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("layers.0.mlp.up_proj.weight")).mul_(2)
    assert find_parameters(model, jobs, scratch) is None


def test_a_tied_head_follows_its_embedding(tmp_path):
    """One table, two names in the model: the output holds it once."""
    from transformers import AutoModelForCausalLM

    for name, change in (("base", 0.0), ("expert", 0.3)):
        write_language_model(tmp_path / name, change=change, seed=1)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        model.lm_head.weight = model.model.embed_tokens.weight
        model.config.tie_word_embeddings = True
        model.save_pretrained(tmp_path / name)
    recipe = write_recipe(tmp_path / "r.yaml", sources=TEXT, merge={"method": "linear"}, output={"format": "text"})
    loaded = load_recipe(recipe)
    compose(loaded, output=tmp_path / "scratch", options=ComposeOptions())
    model = TrialModel(loaded, tmp_path / "scratch")
    assert model.in_place
    settings = Settings({"plain": 0.2, "expert": 0.8})
    model.merge(settings)
    causal = model.subject.model
    assert causal.lm_head.weight.data_ptr() == causal.model.embed_tokens.weight.data_ptr()
    written = compose(applied(loaded, settings), output=tmp_path / "written", options=ComposeOptions())
    assert torch.equal(load_evaluated_model(written.folder).model.lm_head.weight, causal.lm_head.weight)
