"""Adds low-rank factors to frozen layers with PEFT, and writes them as an adapter that PEFT can load.

Paper: Hu et al. 2021, LoRA, arXiv:2106.09685.
Differs: the random factor comes from a generator seeded by stage seed and layer name, not from the global one.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from mcompose.align.parts import LoraPart
from mcompose.checkpoint import PEFT_PREFIX
from mcompose.errors import CheckpointError

__all__ = ["adapter_config", "adapter_tensors", "add_factors", "under_factors"]


def add_factors(model: nn.Module, parts: Sequence[LoraPart], names: Mapping[str, str], *, seed: int) -> dict[str, str]:
    """Adds low-rank factors to the matrices of some parts.

    Args:
        model: Model; changed in place, and the names of its adapted layers change too.
        parts: Parts to adapt.
        names: Key of each matrix to its name in memory before the change.
        seed: Seed of the random factors.

    Returns:
        Name of each new parameter to the name of its part.

    Raises:
        CheckpointError: A part has no linear layer.
    """
    modules = dict(model.named_modules())
    factors: dict[str, str] = {}
    adapters: dict[str, str] = {}
    for number, part in enumerate(parts):
        layers = [names[key].removesuffix(".weight") for key in part.keys]
        layers = [layer for layer in layers if isinstance(modules[layer], nn.Linear)]
        if not layers:
            raise CheckpointError(
                f"'lora.{part.name}' cannot be used: '{part.name}' has no linear layer.",
                hint="Add it to 'train' instead.",
            )
        adapter = f"part{number}"
        config = LoraConfig(
            r=part.spec.rank,
            lora_alpha=part.spec.scaled_by,  # pyright: ignore[reportArgumentType] - PEFT only divides it
            lora_dropout=part.spec.dropout,
            target_modules=layers,
            bias="none",
        )
        inject_adapter_in_model(config, model, adapter_name=adapter, low_cpu_mem_usage=False)
        del model.peft_config  # else PEFT takes the next part for a second adapter on the same layers
        factors |= _initialise(model, layers, adapter, part=part.name, seed=seed)
        adapters |= dict.fromkeys(layers, adapter)
    for layer, adapter in adapters.items():  # adding a part deactivates the adapters of the parts before it
        module: Any = model.get_submodule(layer)
        module.set_adapter(adapter)
    return factors


def under_factors(model: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """Returns where parameters are once factors stand on the layers that hold them, as adapters beside a linear do.

    Args:
        model: Model with the factors.
        names: Key of each parameter to its name in memory before.
    """
    held = {name.replace(".base_layer.", "."): name for name, _ in model.named_parameters()}
    return {key: held.get(name, name) for key, name in names.items()}


@torch.no_grad()
def _initialise(model: nn.Module, layers: Sequence[str], adapter: str, *, part: str, seed: int) -> dict[str, str]:
    """Sets A to the uniform distribution of a new linear layer and B to zero, both float32."""
    names = {}
    for layer in layers:
        module: Any = model.get_submodule(layer)
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        bound = 1.0 / a.shape[1] ** 0.5
        generator = np.random.default_rng([seed, zlib.crc32(layer.encode())])
        drawn = generator.uniform(-bound, bound, size=tuple(a.shape)).astype(np.float32)
        a.data = torch.from_numpy(drawn).to(a.device)
        b.data = torch.zeros(b.shape, dtype=torch.float32, device=b.device)
        names |= {f"{layer}.lora_{kind}.{adapter}.weight": part for kind in "AB"}
    return names


def _layer_of(name: str) -> tuple[str, str]:
    """Splits a factor's name in memory into the path of the adapted layer, and A or B."""
    match = re.fullmatch(r"(.*)\.lora_([AB])\.[^.]+\.weight", name)
    assert match is not None, name
    return match.group(1), match.group(2)


def adapter_tensors(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames factors as in the file of a PEFT adapter.

    Args:
        values: Name in memory to factor.
    """
    tensors = {}
    for name, value in values.items():
        layer, kind = _layer_of(name)
        tensors[f"{PEFT_PREFIX}{layer}.lora_{kind}.weight"] = value.detach().to("cpu", torch.float32)
    return tensors


def adapter_config(parts: Sequence[LoraPart], names: Mapping[str, str]) -> str:
    """Writes the adapter's config, with ranks and scales by layer.

    Args:
        parts: Adapted parts.
        names: Name of each factor in memory to the name of its part.
    """
    specs = {part.name: part.spec for part in parts}
    layers = {_layer_of(name)[0]: specs[part] for name, part in names.items()}
    first = next(iter(layers.values()))
    table = {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": first.scaled_by,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(layers),
        "rank_pattern": {re.escape(layer): spec.rank for layer, spec in layers.items() if spec != first},
        "alpha_pattern": {re.escape(layer): spec.scaled_by for layer, spec in layers.items() if spec != first},
    }
    return json.dumps(table, indent=1) + "\n"
