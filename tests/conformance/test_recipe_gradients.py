"""mergekit's own planner as oracle: the settings of every tensor, from the same YAML.

The planner is run as it is, over a small Llama architecture that exists as a config only; what it hands to the merge
method for each tensor is compared with ``settings_for`` of the translated recipe.
"""

import functools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

mergekit_config = pytest.importorskip("mergekit.config")

from mergekit.architecture import arch_info_for_config  # noqa: E402
from mergekit.common import ModelReference  # noqa: E402
from mergekit.io.tasks import LoaderCache  # noqa: E402
from mergekit.merge_methods import registered_methods  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402
from mergekit.plan import MergePlanner  # noqa: E402
from transformers import LlamaConfig  # noqa: E402

from mcompose.methods import METHODS  # noqa: E402
from mcompose.recipe import check_method, find_slice, load_recipe, parse_recipe, settings_for  # noqa: E402
from mcompose.recipe.mergekit.settings import DEFAULTS, IDLE, IDLE_FOR, NATIVE  # noqa: E402
from mcompose.recipe.values import evaluate, layer_position, parse_value  # noqa: E402

NUM_LAYERS = 6
RESCALE = {"mergekit": True, "none": False}

FILES = {
    "linear": """
        models:
          - {model: org/a, parameters: {weight: 0.3}}
          - {model: org/b, parameters: {weight: [0.2, 1.0]}}
          - model: org/c
            parameters: {weight: [{filter: mlp, value: [0, 0.5, 1]}, {filter: embed, value: 3}, {value: 0.1}]}
        merge_method: linear
        parameters: {normalize: [true, false]}
        dtype: float16
    """,
    "linear with a base that mergekit adds": """
        models: [{model: org/a, parameters: {weight: 0.3}}]
        base_model: org/z
        merge_method: linear
        parameters: {weight: {filter: "*", value: 0.7}}
    """,
    "ties, base among the models, fall-through": """
        models:
          - model: org/z
          - model: org/a
            parameters:
              density: [{filter: self_attn, value: [0.1, 0.9]}]
              weight: [{filter: mlp, value: 0.5}]
          - {model: org/b, parameters: {weight: 0.4}}
        merge_method: ties
        base_model: org/z
        parameters:
          weight: [{filter: model.layers.2., value: 0.25}, {value: [0, 1]}]
          density: [{filter: mlp, value: 0.7}, {filter: model.norm, value: 0.6}]
          normalize: false
          lambda: [1, 1.5, 1]
          int8_mask: true
        dtype: bfloat16
    """,
    "dare, silent about rescale": """
        models: [{model: org/a, parameters: {weight: 1}}, {model: org/b, parameters: {weight: 0.5, density: 0.3}}]
        merge_method: dare_ties
        base_model: org/z
    """,
    "della": """
        models: [{model: org/a, parameters: {weight: 1, epsilon: 0.1}}, {model: org/b, parameters: {weight: 0.5}}]
        merge_method: della
        base_model: org/z
        parameters: {density: 0.5, epsilon: [{filter: mlp, value: 0.2}], rescale: 0, normalize: 1}
    """,
    "breadcrumbs": """
        models:
          - {model: org/a, parameters: {weight: 1e-1, gamma: [0.1, 0.2]}}
          - {model: org/b, parameters: {weight: 0.5}}
        merge_method: breadcrumbs_ties
        base_model: org/z
    """,
    "task arithmetic with a density that does nothing": """
        models: [{model: org/a, parameters: {weight: 1, density: 0.1}}, {model: org/b, parameters: {weight: -0.5}}]
        merge_method: task_arithmetic
        base_model: org/z
        parameters: {lambda: 0.5}
    """,
    "slerp, whole slice": """
        slices:
          - sources: [{model: org/a, layer_range: [0, 6]}, {model: org/b, layer_range: [0, 6]}]
        merge_method: slerp
        base_model: org/b
        parameters:
          t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0]}, {value: 0.5}]
    """,
    "slerp from models": """
        models: [{model: org/a}]
        merge_method: slerp
        base_model: org/b
        parameters: {t: [0, 1]}
    """,
    "slerp in slices, a base each": """
        slices:
          - sources: [{model: org/a, layer_range: [0, 2]}, {model: org/b, layer_range: [2, 4]}]
            parameters: {t: [0, 1]}
          - sources: [{model: org/a, layer_range: [2, 6]}, {model: org/c, layer_range: [0, 4]}]
            base_model: org/c
        merge_method: slerp
        base_model: org/a
        parameters: {t: [{filter: lm_head, value: 0.9}, {value: [1, 0]}]}
    """,
    "passthrough": """
        slices:
          - sources: [{model: org/a, layer_range: [0, 3]}]
          - sources:
              - {model: org/b, layer_range: [2, 5], parameters: {scale: [{filter: model.layers.4., value: 0.5}]}}
          - sources: [{model: org/a, layer_range: [4, 6]}]
        merge_method: passthrough
    """,
    "ties in slices": """
        slices:
          - sources:
              - {model: org/z, layer_range: [0, 2]}
              - {model: org/a, layer_range: [0, 2], parameters: {weight: [0, 1], density: 0.1}}
              - {model: org/b, layer_range: [1, 3]}
            parameters: {weight: 0.6, density: [{filter: model.layers.1., value: 0.2}]}
          - sources:
              - {model: org/z, layer_range: [2, 6]}
              - {model: org/b, layer_range: [2, 6]}
        merge_method: ties
        base_model: org/z
        parameters: {weight: [0.1, 0.9], density: 0.5}
    """,
    "nuslerp with a base": """
        models: [{model: org/a, parameters: {weight: 1}}, {model: org/b, parameters: {weight: [0, 1]}}]
        merge_method: nuslerp
        base_model: org/z
        parameters: {nuslerp_flatten: false}
    """,
    "model stock": """
        models: [{model: org/a}, {model: org/b}, {model: org/c}]
        merge_method: model_stock
        base_model: org/z
        parameters: {filter_wise: true}
    """,
    "karcher": """
        models: [{model: org/a}, {model: org/b}]
        merge_method: karcher
        parameters: {max_iter: 5, tol: 1e-7}
    """,
    "sce by the bridge": """
        models: [{model: org/a}, {model: org/b}]
        merge_method: sce
        base_model: org/z
        parameters: {select_topk: [0.1, 0.5]}
    """,
    "multislerp by the bridge": """
        models: [{model: org/a, parameters: {weight: 0.2}}, {model: org/b, parameters: {weight: 0.8}}]
        merge_method: multislerp
        parameters: {normalize_weights: false}
    """,
    "ram by the bridge, common epsilon": """
        models: [{model: org/a}, {model: org/b, parameters: {epsilon: 0.5}}]
        merge_method: ram
        base_model: org/z
        parameters: {epsilon: 1e-4}
    """,
    "nearswap by the bridge": """
        models: [{model: org/a}]
        merge_method: nearswap
        base_model: org/z
        parameters: {t: [0.0, 0.1]}
    """,
}


@pytest.fixture(scope="module")
def planned():
    """What mergekit hands to the merge method: output name to (models, shared, per model)."""
    config = LlamaConfig(
        num_hidden_layers=NUM_LAYERS,
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        vocab_size=16,
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=False,
    )
    everything = SimpleNamespace(index=SimpleNamespace(tensor_paths=_Everything()))

    def plan(text):
        parsed = mergekit_config.MergeConfiguration.model_validate(yaml.safe_load(text))
        options = MergeOptions()
        out_config = LlamaConfig(**{**config.to_dict(), "num_hidden_layers": _output_layers(parsed)})
        planner = MergePlanner(parsed, arch_info_for_config(config), options, out_config)
        planner._plan()
        return {
            weight.name: (
                [str(model) for model in task.model_order],
                dict(task.parameters.items()),
                {str(model): dict(values.items()) for model, values in task.input_parameters.items()},
            )
            for weight, task in planner._tensors
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelReference, "config", lambda self, trust_remote_code=False: config)
        patch.setattr(LoaderCache, "get", lambda self, model: everything)
        yield functools.lru_cache(plan)


class _Everything:
    def __contains__(self, name):
        return True


def _output_layers(parsed):
    if not parsed.slices:
        return NUM_LAYERS
    return sum(piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0] for piece in parsed.slices)


def place_of(name):
    """(part, layer, shared name) of a Llama tensor."""
    if name == "lm_head.weight":
        return "head", None, name
    short = name.removeprefix("model.")
    layer = re.match(r"layers\.(\d+)\.", short)
    part = "embedding" if short.startswith("embed_tokens") else "language"
    return part, int(layer.group(1)) if layer else None, short


@pytest.mark.parametrize("case", FILES, ids=str)
def test_every_tensor_gets_mergekits_settings(case, planned, tmp_path):
    path = tmp_path / "merge.yml"
    path.write_text(FILES[case])
    loaded = load_recipe(path)
    check_method(loaded, {method.name: method for method in METHODS})
    merge, method = loaded.recipe.merge, loaded.recipe.merge.method.removeprefix("mergekit:")
    ref_of = {source.name: source.model.location for source in loaded.recipe.sources}
    defaults = next({p.name: p for p in m.spec.parameters} for m in registered_methods() if m.spec.name == method)
    expected = planned(FILES[case])
    num_layers = 1 + max(place_of(name)[1] or 0 for name in expected)
    assert len(expected) > 2 * num_layers
    for name, (models, shared, own) in expected.items():
        part, layer, short = place_of(name)
        place = find_slice(merge, part=part, layer=layer)
        sources = [n for n in loaded.recipe.source_names if place is None or n in place.piece.names]
        base = loaded.recipe.base.location if loaded.recipe.base else None
        assert sorted(models) == sorted([*(ref_of[n] for n in sources), *([base] if base else [])])
        setting = settings_for(merge, sources=sources, part=part, layer=layer, num_layers=num_layers, name=short)
        got = dict(setting.parameters)
        if "rescale" in got:
            got["rescale"] = RESCALE.get(got["rescale"], got["rescale"])
        for key, value in shared.items():
            if key not in (*IDLE, *IDLE_FOR.get(method, ())):
                assert got.pop(key, defaults[key].default) == pytest.approx(value), (name, key)
        for number, source in enumerate(sources):
            for key, value in own[ref_of[source]].items():
                if key == "weight":
                    assert setting.weights[number] == pytest.approx(value), (name, source)
                elif key not in IDLE_FOR.get(method, ()):
                    mine = got.get(key, defaults[key].default)
                    mine = mine[number] if isinstance(mine, tuple) else mine
                    mine = 1.0 if mine is None else mine
                    # mergekit's scale is None where it is not said; that is a factor of one.
                    assert mine == pytest.approx(1.0 if key == "scale" and value is None else value), (name, key)
        assert [key for key in got if key not in own[ref_of[sources[0]]]] == []


def test_slerp_starts_at_mergekits_base(tmp_path):
    path = tmp_path / "merge.yml"
    path.write_text(FILES["slerp, whole slice"])
    recipe = load_recipe(path).recipe
    assert [source.model.location for source in recipe.sources] == ["org/b", "org/a"]
    path.write_text(FILES["slerp in slices, a base each"])
    recipe = load_recipe(path).recipe
    assert [piece.names for piece in recipe.merge.slices] == [("a", "b"), ("c", "a")]


gradients = st.lists(st.floats(-10, 10), min_size=1, max_size=6) | st.lists(st.booleans(), min_size=1, max_size=4)
settings = st.one_of(
    gradients,
    st.floats(-10, 10),
    st.lists(
        st.fixed_dictionaries(
            {"value": gradients | st.integers(-3, 3)},
            optional={"filter": st.sampled_from(["*", "mlp", "self_attn", "layers.1."])},
        ),
        min_size=1,
        max_size=3,
    ),
)


@given(settings, st.integers(1, 9), st.integers(0, 8), st.sampled_from(["mlp", "self_attn", "norm"]))
def test_one_value_is_what_mergekit_evaluates(raw, count, index, kind):
    layer = min(index, count - 1)
    name = f"model.layers.{layer}.{kind}.weight"
    # The planner's own rule for where a layer stands.
    t = layer / (count - 1) if count > 1 else 1
    parsed = raw
    if isinstance(raw, list) and isinstance(raw[0], dict):
        parsed = [mergekit_config.ConditionalParameter.model_validate(item) for item in raw]
    expected = mergekit_config.evaluate_setting(name, parsed, t, validate=lambda value: value)
    got = evaluate(parse_value(raw), name=name, position=layer_position(layer, first=0, last=count - 1))
    assert got == expected if expected is None else got == pytest.approx(expected)


def test_the_tables_of_the_translation_are_the_methods_own():
    """What a translated recipe says in mergekit's stead is what the methods declare."""
    for name in NATIVE:
        method = METHODS.get(name)
        assert dict(method.mergekit_defaults) == DEFAULTS.get(name, {}), name
        assert set(method.mergekit_ignored) <= {*IDLE, *IDLE_FOR.get(name, ())}, name
        assert set(IDLE_FOR.get(name, ())) <= set(method.mergekit_ignored), name
    assert set(NATIVE) == {m.spec.name for m in registered_methods()} & set(METHODS.names())


@pytest.mark.parametrize("method", [m.spec.name for m in registered_methods()])
def test_every_method_of_mergekit_has_a_name_here(method):
    text = f"merge_method: {method}\nbase_model: o/z\nmodels: [{{model: o/a}}]\nparameters: {{weight: 1}}\n"
    recipe = parse_recipe(text, path=Path("merge.yml")).recipe
    assert recipe.merge.method == (method if method in NATIVE else f"mergekit:{method}")
