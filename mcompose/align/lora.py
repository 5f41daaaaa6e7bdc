"""Low-rank factors on frozen layers, by PEFT, written as an adapter that PEFT reads.

Paper: Hu et al. 2021, LoRA, arXiv:2106.09685.
Differs: the random factor is drawn from a generator that is addressed by seed and layer, not from the global one.
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

__all__ = ["adapter_config", "adapter_tensors", "add_factors"]


def add_factors(model: nn.Module, parts: Sequence[LoraPart], names: Mapping[str, str], *, seed: int) -> dict[str, str]:
    """Puts factors beside the matrices of some parts.

    Args:
        model: Changed in place; the names of its adapted layers change too.
        parts: Parts that are adapted.
        names: Key of a matrix to its name in memory, before the change.
        seed: Seed of the random factors.

    Returns:
        Name of each new parameter to the name of its part.

    Raises:
        CheckpointError: A matrix is not a linear layer.
    """
    modules = dict(model.named_modules())
    factors: dict[str, str] = {}
    adapters: dict[str, str] = {}
    for number, part in enumerate(parts):
        layers = [names[key].removesuffix(".weight") for key in part.keys]
        layers = [layer for layer in layers if isinstance(modules[layer], nn.Linear)]
        if not layers:
            raise CheckpointError(f"'lora.{part.name}' finds no linear layer to adapt.")
        adapter = f"part{number}"
        config = LoraConfig(
            r=part.spec.rank,
            lora_alpha=part.spec.scaled_by,  # pyright: ignore[reportArgumentType] - PEFT divides it only
            lora_dropout=part.spec.dropout,
            target_modules=layers,
            bias="none",
        )
        inject_adapter_in_model(config, model, adapter_name=adapter, low_cpu_mem_usage=False)
        del model.peft_config  # PEFT takes a second part for a second adapter on the same layers
        factors |= _start(model, layers, adapter, part=part.name, seed=seed)
        adapters |= dict.fromkeys(layers, adapter)
    for layer, adapter in adapters.items():  # each part's coming put those before it to sleep
        module: Any = model.get_submodule(layer)
        module.set_adapter(adapter)
    return factors


@torch.no_grad()
def _start(model: nn.Module, layers: Sequence[str], adapter: str, *, part: str, seed: int) -> dict[str, str]:
    """Returns A from the uniform distribution of a fresh linear layer, B zero; both float32."""
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
    """Path of the adapted layer, and A or B, of a factor's name in memory."""
    match = re.fullmatch(r"(.*)\.lora_([AB])\.[^.]+\.weight", name)
    assert match is not None, name
    return match.group(1), match.group(2)


def adapter_tensors(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Factors under the names of a PEFT adapter's file.

    Args:
        values: Name in memory to factor.
    """
    found = {}
    for name, value in values.items():
        layer, kind = _layer_of(name)
        found[f"{PEFT_PREFIX}{layer}.lora_{kind}.weight"] = value.detach().to("cpu", torch.float32)
    return found


def adapter_config(parts: Sequence[LoraPart], names: Mapping[str, str]) -> str:
    """Returns the adapter's config: ranks and scales by layer.

    Args:
        parts: Parts that are adapted.
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
