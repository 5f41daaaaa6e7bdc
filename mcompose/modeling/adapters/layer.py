"""Adapters beside a linear: its output plus what every set adds.

Letters: N tokens of all rows, S samples, T tokens of the longest, E experts, K rank, I and O widths of the linear.

The factors of all experts of a set are stacked, so a set costs two matrix products and a router. They hang on the
linear by a hook behind its forward, whatever that is: plain, routed by modality, quantised, adapted by PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from ..groups.linear import RoutedLinear, attention_of, decoder_layers
from .mixing import (
    SlotState,
    combine_weights,
    gate_figures,
    merged_gates,
    router_logits,
    running_slots,
    slots_of,
)
from .run import ADAPTER_RUN, AdapterRun

__all__ = ["AdapterSet", "adapt_encoder", "adapt_language", "adapter_sets"]


class AdapterSet(nn.Module):
    """The experts of one set beside one linear; fresh ones (``up`` zero) add nothing.

    Args:
        name: Name of the set.
        place: Name of the linear; with the set's, it names what is kept beside a cache.
        linear: The linear.
        entry: The set's entry in ``ComposedConfig.adapters``.
    """

    def __init__(self, name: str, place: str, linear: nn.Linear, entry: Mapping[str, Any]) -> None:
        super().__init__()
        self.name, self.place, self.mode = name, place, entry["mode"]
        self.experts, self.rank = int(entry["experts"]), int(entry["rank"])
        modalities = entry.get("modalities")
        self.modalities = None if modalities is None else tuple(modalities)
        self.normalise = entry.get("normalise", "l2")
        alpha = entry.get("alpha")
        self.factor = 1.0 if alpha is None else float(alpha) / self.rank
        rows, like = self.experts * self.rank, {"device": linear.weight.device, "dtype": torch.get_default_dtype()}
        self.down = nn.Parameter(torch.zeros(rows, linear.in_features, **like))
        self.up = nn.Parameter(torch.zeros(rows, linear.out_features, **like))
        self.router = nn.Parameter(torch.zeros(self.experts, linear.in_features, **like))
        self.scale = nn.Parameter(torch.ones((), **like)) if self.normalise == "l2" else None

    def forward(self, x_NI: torch.Tensor, run: AdapterRun | None, shape: tuple[int, ...]) -> torch.Tensor | None:
        """Returns what the set adds (N, O), or None for nothing.

        Args:
            x_NI: Tokens, in order.
            run: What is known of them; None in an encoder.
            shape: The sizes before I of the linear's input.
        """
        x_NI = x_NI.to(self.down.dtype)
        if run is None:
            return self._whole(x_NI, shape)
        mask_N = run.mask_of(self.modalities).reshape(-1).to(x_NI.device)
        if self.mode == "token":
            return self._by_token(x_NI, mask_N, run)
        return self._by_sample(x_NI, mask_N, run)

    def _whole(self, x_NI: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """All tokens of an encoder, which sees every token of an item: (items, tokens) are the first sizes."""
        if self.mode == "token":
            return self._raised(self._gated(x_NI, self._logits(x_NI)))
        if len(shape) < 2:
            raise ValueError(
                f"The adapters {self.name!r} mix the tokens of an item, and this encoder runs all items as one row; "
                "use the mode 'token' there."
            )
        x_STI = x_NI.view(-1, shape[-1], x_NI.shape[-1])
        real_ST = torch.ones(x_STI.shape[:2], dtype=torch.bool, device=x_NI.device)
        logits_STE = self._logits(x_STI)
        slots = slots_of(self._lowered(x_STI), logits_STE, real_ST).slots_REK
        return self._raised(self._combined(logits_STE, slots[:, None]).flatten(0, 1))

    def _by_token(self, x_NI: torch.Tensor, mask_N: torch.Tensor, run: AdapterRun) -> torch.Tensor | None:
        if self.modalities is None or torch.compiler.is_compiling():
            logits_NE = self._logits(x_NI)
            self._note(logits_NE, run, torch.ones_like(mask_N))
            made = self._raised(self._gated(x_NI, logits_NE))
            return made if self.modalities is None else made * mask_N[:, None]
        chosen = mask_N.nonzero()[:, 0]
        if not len(chosen):
            return None
        x_CI = x_NI.index_select(0, chosen)
        logits_CE = self._logits(x_CI)
        self._note(logits_CE, run, mask_N)
        made = self._raised(self._gated(x_CI, logits_CE))
        if len(chosen) == len(x_NI):
            return made
        return made.new_zeros(len(x_NI), made.shape[-1]).index_copy(0, chosen, made)

    def _by_sample(self, x_NI: torch.Tensor, mask_N: torch.Tensor, run: AdapterRun) -> torch.Tensor:
        assert run.samples is not None, "made for every set that mixes tokens"
        x_STI = run.samples.gathered(x_NI)
        own_ST = run.samples.gathered(mask_N) & run.samples.real_ST.to(x_NI.device)
        seen_ST = own_ST & run.samples.gathered(run.real_BL.reshape(-1).to(x_NI.device))
        if run.prompt_BL is not None:
            prompt_ST = run.samples.gathered(run.prompt_BL.reshape(-1).to(x_NI.device))
        else:
            prompt_ST = torch.ones_like(seen_ST)
        if self.mode == "merged":
            made_STO = self._merged(x_STI, seen_ST & prompt_ST, run)
        else:
            made_STO = self._slotted(x_STI, seen_ST, prompt_ST, run)
            if run.figures is not None:
                self._note(run.samples.put_back(self._logits(x_STI), len(x_NI)), run, mask_N)
        return run.samples.put_back(made_STO * own_ST[..., None], len(x_NI))

    def _merged(self, x_STI: torch.Tensor, seen_ST: torch.Tensor, run: AdapterRun) -> torch.Tensor:
        gates_SE = self._kept(run, lambda: merged_gates(x_STI, seen_ST, self.router, self.scale, self.normalise))
        h_STEK = self._lowered(x_STI) * gates_SE[:, None, :, None].to(x_STI.dtype)
        return self._raised(h_STEK.flatten(2))

    def _slotted(
        self, x_STI: torch.Tensor, seen_ST: torch.Tensor, prompt_ST: torch.Tensor, run: AdapterRun
    ) -> torch.Tensor:
        logits_STE, h_STEK = self._logits(x_STI), self._lowered(x_STI)
        if self.mode == "prefix":
            state = self._kept(run, lambda: slots_of(h_STEK, logits_STE, seen_ST & prompt_ST))
            return self._raised(self._combined(logits_STE, state.slots_REK[:, None]))
        before = run.states.get(self.key) if run.states is not None and run.continued else None
        slots_STEK, after = running_slots(h_STEK, logits_STE, seen_ST, cast("SlotState | None", before))
        if run.states is not None:
            run.states[self.key] = after
        return self._raised(self._combined(logits_STE, slots_STEK))

    @property
    def key(self) -> str:
        """Name of what is kept beside a cache."""
        return f"{self.place}.{self.name}"

    def _kept(self, run: AdapterRun, make: Any) -> Any:
        """Returns what the prompt left behind: made now, or out of what is kept beside the cache."""
        if run.continued:
            if run.states is None or self.key not in run.states:
                raise ValueError(
                    f"The adapters {self.name!r} need what they made of the prompt, and this cache does not hold it."
                )
            return run.states[self.key]
        made = make()
        if run.states is not None:
            run.states[self.key] = made
        return made

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return router_logits(x, self.router, self.scale, self.normalise)

    def _lowered(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.down).unflatten(-1, (self.experts, self.rank))

    def _gated(self, x_NI: torch.Tensor, logits_NE: torch.Tensor) -> torch.Tensor:
        gates_NE = combine_weights(logits_NE).to(x_NI.dtype)
        return (self._lowered(x_NI) * gates_NE[..., None]).flatten(-2)

    def _combined(self, logits_STE: torch.Tensor, slots_STEK: torch.Tensor) -> torch.Tensor:
        gates = combine_weights(logits_STE)[..., None]
        return (gates * slots_STEK).to(self.up.dtype).flatten(-2)

    def _raised(self, h: torch.Tensor) -> torch.Tensor:
        made = h @ self.up
        return made if self.factor == 1.0 else made * self.factor

    def _note(self, logits_NE: torch.Tensor, run: AdapterRun, mask_N: torch.Tensor) -> None:
        if run.figures is None:
            return
        gates_NE = combine_weights(logits_NE.detach())
        chosen = mask_N.nonzero()[:, 0]
        gates_NE = gates_NE if len(gates_NE) == len(chosen) else gates_NE[chosen]
        rows = run.figures.setdefault(self.name, {})
        for modality, tokens_BL in {**run.origin, "text": run.mask_of(("text",))}.items():
            mine = (tokens_BL & run.real_BL).reshape(-1).to(gates_NE.device)[chosen]
            if bool(mine.any()):
                rows.setdefault(modality, []).append(gate_figures(gates_NE[mine]))


class LayerSlot:
    """What the linears of one layer share: the running pass, or None."""

    def __init__(self) -> None:
        self.run: AdapterRun | None = None


def adapt_language(language: nn.Module, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Gives the linears of a decoder's layers adapters, in place; their values are yet to be given.

    Args:
        language: The bare decoder.
        entries: Set -> its entry, for the sets that stand beside the language model.

    Raises:
        ValueError: The decoder cannot hand the pass to its layers, or a set is beside no linear.
    """
    if not entries:
        return
    owner, met = type(language).__name__, dict.fromkeys(entries, 0)
    for index, layer in enumerate(decoder_layers(language)):
        attention = attention_of(layer, owner)
        if not hasattr(attention, "adapter_slot"):
            attention.adapter_slot = LayerSlot()
            attention.register_forward_pre_hook(_take_run, with_kwargs=True)
        for path, linear in _linears(layer):
            for name, entry in entries.items():
                if _is_target(entry, path, index):
                    _attach(linear, name, f"layers.{index}.{path}", entry, attention.adapter_slot)
                    met[name] += 1
    _check_met(met, owner)


def adapt_encoder(tower: nn.Module, entries: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Gives the linears of a tower's encoder adapters, in place; its projector has none.

    Args:
        tower: The tower.
        entries: Set -> its entry, for the sets that stand beside this encoder.
        name: The tower's.

    Raises:
        ValueError: A set is beside no linear.
    """
    met = dict.fromkeys(entries, 0)
    for path, module in list(tower.named_modules()):
        index = next((int(word) for word in path.split(".") if word.isdigit()), None)
        if type(module) is not nn.Linear or index is None or "projector" in path:
            continue
        for key, entry in entries.items():
            if _is_target(entry, path, index):
                _attach(module, key, f"{name}.{path}", entry, None)
                met[key] += 1
    _check_met(met, name)


def adapter_sets(model: nn.Module) -> Iterator[tuple[str, AdapterSet]]:
    """Yields name and module of every set beside every linear."""
    for name, module in model.named_modules():
        if isinstance(module, AdapterSet):
            yield name, module


def _linears(layer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    within: tuple[str, ...] = ()
    for name, module in list(layer.named_modules()):
        if not name.startswith(within or ("\0",)) and (isinstance(module, RoutedLinear) or type(module) is nn.Linear):
            within += (f"{name}.",)  # its groups are part of it
            yield name, module


def _is_target(entry: Mapping[str, Any], path: str, index: int) -> bool:
    targets, layers = entry.get("targets"), entry.get("layers")
    if targets is not None and path.rpartition(".")[2] not in targets:
        return False
    return layers is None or int(layers[0]) <= index <= int(layers[1])


def _check_met(met: Mapping[str, int], owner: str) -> None:
    for name, count in met.items():
        if not count:
            raise ValueError(f"The adapters {name!r} stand beside no linear of {owner}: check 'targets' and 'layers'.")


def _attach(linear: nn.Linear, name: str, place: str, entry: Mapping[str, Any], slot: LayerSlot | None) -> None:
    if not hasattr(linear, "adapters"):
        linear.adapters = nn.ModuleDict()
        linear.register_forward_hook(_Added(slot))
    cast("nn.ModuleDict", linear.adapters)[name] = AdapterSet(name, place, linear, entry)


class _Added:
    """Hook behind a linear that adds what its adapters make of the same input.

    Args:
        slot: The layer's; None in an encoder.
    """

    def __init__(self, slot: LayerSlot | None) -> None:
        self.slot = slot

    def __call__(self, linear: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        run = None if self.slot is None else self.slot.run
        if self.slot is not None and run is None:
            raise ValueError("A language model with adapters runs inside its composed model only.")
        x, moved = args[0], _moved(linear)
        x_NI = x.reshape(-1, x.shape[-1])
        x_NI = x_NI if moved is None else moved.put_back(x_NI)
        added = None
        for each in linear.adapters.values():
            made = each(x_NI, run, tuple(x.shape[:-1]))
            if made is not None:
                added = made if added is None else added + made
        if run is not None:
            run.met += 1
        if added is None:
            return output
        added = added if moved is None else moved.laid_out(added)
        return output + added.view(output.shape).to(output.dtype)


def _moved(linear: Any) -> Any:
    """The route by whose order a routed linear's input is laid out; None where tokens are in their own order."""
    if isinstance(linear, RoutedLinear) and linear.slot.route is not None and linear.slot.laid_out:
        return linear.slot.route
    return None


def _take_run(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    module.adapter_slot.run = kwargs.pop(ADAPTER_RUN, None)
    return args, kwargs
