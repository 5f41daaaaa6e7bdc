"""Language models of many families are routed by what their layers hold, or refused with a sentence."""

import pytest
import torch
from routed_models import Reference
from torch import nn
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mcompose.modeling.groups.linear import ROUTE, check_taken, route_language, routed_linears
from mcompose.modeling.groups.specs import group_specs
from mcompose.modeling.groups.weight_routing import make_route

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
ROUTED = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo", "olmo2", "granite",
    "cohere", "cohere2", "starcoder2", "smollm3", "glm", "glm4", "helium", "gpt_neox", "ministral", "seed_oss",
    "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "lfm2",
]  # fmt: skip
NOT_PLAIN = ["mixtral", "qwen3_moe", "gpt2", "opt", "mamba", "falcon_h1"]
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
CHANGES = {"qwen2_vl_text": MROPE, "qwen2_5_vl_text": MROPE, "qwen3_vl_text": MROPE}
SPECS = group_specs(
    {"image": {"kind": "dense"}, "audio": {"kind": "low_rank", "rank": 3, "scale": 2.0}, "text": {"kind": "dense"}}
)


def language(kind, **changes):
    config = CONFIG_MAPPING[kind](**{**SIZES, **CHANGES.get(kind, {}), **changes})
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval().double()


@pytest.mark.parametrize("kind", ROUTED)
@torch.no_grad()
def test_a_family_equals_the_masked_sum(kind):
    model = language(kind)
    linears = {name for name, m in model.named_modules() if type(m) is nn.Linear and ".layers." in f".{name}"}
    plain_keys = set(model.state_dict())
    route_language(model, SPECS)
    assert {name for name, _ in routed_linears(model)} == linears
    assert plain_keys < set(model.state_dict())
    for name, parameter in model.named_parameters():
        if ".groups." in name:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 6)
    ids = torch.arange(24).reshape(2, 12) + 3
    image, audio = torch.zeros_like(ids).bool(), torch.zeros_like(ids).bool()
    image[:, 2:6], audio[0, 7:9] = True, True
    masks = {"image": image, "audio": audio}
    inputs = {ROUTE: make_route(SPECS, masks)}
    found = model(ids, **inputs).last_hidden_state
    check_taken(inputs, model)
    for name, linear in list(routed_linears(model)):
        model.set_submodule(name, Reference(linear, masks))
    torch.testing.assert_close(found, model(ids).last_hidden_state, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_layers_that_are_not_plain_linears_are_refused_and_left_alone(kind):
    model = language(kind)
    before = set(model.state_dict())
    with pytest.raises(ValueError, match="cannot be routed"):
        route_language(model, SPECS)
    assert set(model.state_dict()) == before
    assert not list(routed_linears(model))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("deepseek_v3", {"first_k_dense_replace": 1}), ("lfm2", {"layer_types": ["full_attention", "conv"]})],
)
def test_one_layer_of_another_kind_is_enough_to_refuse(kind, changes):
    model = language(kind, **changes)
    with pytest.raises(ValueError, match=r"cannot be routed: .* (holds the matrix|has 0 modules)"):
        route_language(model, SPECS)
    assert not list(routed_linears(model))


@pytest.mark.parametrize("kind", ["stablelm", "nemotron"])
@torch.no_grad()
def test_a_language_model_that_drops_the_route_is_refused(kind):
    """Its layers pass no further arguments on, so all tokens would silently use the text group."""
    model = language(kind)
    route_language(model, SPECS)
    inputs = {ROUTE: make_route(SPECS, {"image": torch.tensor([[False, True]])})}
    model(torch.tensor([[3, 4]]), **inputs)
    with pytest.raises(ValueError, match=f"The linears of {type(model).__name__} got no route"):
        check_taken(inputs, model)
