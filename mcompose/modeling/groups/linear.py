"""Linear layers with one set of weights per modality: the run time of DAMC.

Letters: N tokens of all rows of a batch, I and O widths of a linear.

Every linear of every decoder layer holds parameter groups, one per modality plus text, and each token uses the group
of its origin: features of a modality (with the vectors around them) that modality's, all else, padding and generated
tokens included, the text group. Paper: Chen et al. 2024, "Model Composition for Multimodal Large Language Models",
arXiv 2402.12750, section 3 (parameter decoupling). Differs: tokens are gathered by group, where the paper's code
runs every group on all tokens and masks the results; a text-only call is the plain linear, bit for bit.

What W0 is. A low-rank group is ``W0 + s * B * A``, and W0 has to be the tensor that A and B were trained against. It
is stored once per linear, never reconstructed by subtraction, in one of two ways (``ComposedConfig.routed_base``):

- "shared": W0 is the linear's own ``weight``. The text group is that weight too, or, when "text" is named among the
  groups, itself low-rank: ``W0 + s * B_t * A_t``. A composition keeps its donors' text factors apart there, as a sum
  ``W0 + sum_i s_i * (lambda_i B_i) * A_i`` of any ranks, so nothing of the merged text group is rounded to a dense
  tensor. Compact: one dense tensor. The text factors cost a little in every decoding step.
- "separate": the text group is the ``weight``, merged into one tensor, and W0 is stored beside it as ``base.weight``.
  Decoding costs what the plain model costs. ``fold_text`` turns the first form into this one.

A bias is part of W0, and of dense groups. Dense groups need no base.

How tokens find their group. A ``Route`` (``weight_routing.py``) travels as a keyword argument down to the attention
module of each layer, where a forward pre-hook takes it and leaves it in a slot that the layer's linears read. The hook
is on the attention module because gradient checkpointing re-runs what is inside a layer's ``forward`` and not the
layer's own hooks: with the hook there, each recomputation sees the route of its own forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from .low_rank import LowRank, Term, is_bare, linear_like, summed
from .specs import TEXT, GroupSpec
from .weight_routing import BASE, OWN, Route, make_route

__all__ = [
    "ROUTE",
    "LowRank",
    "RoutedLinear",
    "attention_of",
    "check_taken",
    "decoder_layers",
    "linears_of",
    "route_inputs",
    "route_language",
    "routed_linears",
]

ROUTE = "modality_route"


class Slot:
    """What the linears of one layer share: the route of the running forward pass, or None.

    ``laid_out`` tells that the running module's input is in the order of the route already; ``outer`` is the route
    that comes back after it.
    """

    def __init__(self) -> None:
        self.route: Route | None = None
        self.laid_out = False
        self.outer: Route | None = None


class RoutedLinear(nn.Linear):
    """A linear with parameter groups; without a route it is the plain linear (or its low-rank text group).

    Args:
        linear: The linear to take over: its parameters become this one's, so their names stay.
        slot: The layer's slot.
    """

    def __init__(self, linear: nn.Linear, slot: Slot) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.training = linear.training
        self.slot = slot
        self.groups = nn.ModuleDict()
        self.stack = nn.ModuleList()
        self.base: nn.Linear | None = None
        self.plain = True

    def add(self, name: str, spec: GroupSpec) -> None:
        """Makes a group, with values yet to be given."""
        self.groups[name] = LowRank(self, rank=spec.rank, scale=spec.scale) if spec.low_rank else linear_like(self)
        self.stack.extend(Term() for _ in range(len(spec.more) - len(self.stack)))
        for term, (rank, scale) in zip(self.stack, spec.more, strict=False):
            cast("Term", term).groups[name] = LowRank(self, rank=rank, scale=scale)
        self.plain = TEXT not in self.groups

    def remove(self, name: str) -> None:
        """Takes a group out, with all its terms."""
        del self.groups[name]
        for term in self.stack:
            groups = cast("Term", term).groups
            if name in groups:
                del groups[name]
        self.stack = nn.ModuleList(term for term in self.stack if len(cast("Term", term).groups))
        self.plain = TEXT not in self.groups

    def terms(self, name: str) -> list[LowRank]:
        """Returns the products that a low-rank group adds to its base."""
        holders: list[Any] = [self, *self.stack]
        return [holder.groups[name] for holder in holders if name in holder.groups]

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Maps (..., I) to (..., O)."""
        route = self.slot.route
        if route is None:
            y = functional.linear(x, self.weight, self.bias)
            return y if self.plain else self._with_text(x, y)
        route.met += not route.masks
        x_NI = x.reshape(-1, x.shape[-1])
        if x_NI.shape[0] != route.tokens:
            raise ValueError(f"A routed linear got {x_NI.shape[0]} vectors for {route.tokens} tokens.")
        moved = route.layout is not None and not self.slot.laid_out
        x_NI = route.laid_out(x_NI) if moved else x_NI
        if route.masks:
            y_NO = self._selected(x_NI, route)
        elif _followed(x):
            y_NO = self._gathered(x_NI, route)
        else:
            y_NO = self._in_place(x_NI, route)
        y_NO = route.put_back(y_NO) if moved else y_NO
        return y_NO.view(*x.shape[:-1], self.out_features)

    def _with_text(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        terms = self.terms(TEXT)
        if _followed(x) or torch.compiler.is_compiling() or not all(low.bare for low in terms):
            return y + summed(terms, x)
        y_NO, x_NI = y.view(-1, self.out_features), x.reshape(-1, self.in_features)
        for low in terms:
            low.add_to(y_NO, x_NI)
        return y

    def _dense(self, name: str) -> nn.Linear:
        if name == OWN:
            return self
        return cast("nn.Linear", self.base if name == BASE else self.groups[name])

    def _product(self, name: str, x_NI: torch.Tensor) -> torch.Tensor:
        if name == OWN:
            return functional.linear(x_NI, self.weight, self.bias)
        # Called, since adapters and offloading wrap it.
        return self._dense(name)(x_NI)

    def _gathered(self, x_NI: torch.Tensor, route: Route) -> torch.Tensor:
        if len(route.shares) == 1:
            y_NO = self._product(route.shares[0].weights, x_NI)
        else:
            y_NO = torch.cat([self._product(share.weights, share.of(x_NI)) for share in route.shares])
            if route.order is not None:
                y_NO = y_NO.index_select(0, route.order.to(x_NI.device))
        for part in route.parts:
            added = summed(self.terms(part.weights), part.of(x_NI))
            y_NO.index_add_(0, part.positions(x_NI.device), added)
        return y_NO

    def _in_place(self, x_NI: torch.Tensor, route: Route) -> torch.Tensor:
        """As ``_gathered``, with each product written to where it belongs; autograd cannot follow it."""
        y_NO = x_NI.new_empty(len(x_NI), self.out_features)
        for share in route.shares:
            dense = self._dense(share.weights)
            if share.index is not None:
                y_NO.index_copy_(0, share.index.to(x_NI.device), self._product(share.weights, share.of(x_NI)))
            elif dense is not self and not is_bare(dense):
                share.of(y_NO).copy_(dense(share.of(x_NI)))
            elif dense.bias is None:
                torch.mm(share.of(x_NI), dense.weight.t(), out=share.of(y_NO))
            else:
                torch.addmm(dense.bias, share.of(x_NI), dense.weight.t(), out=share.of(y_NO))
        for part in route.parts:
            terms, part_NI = self.terms(part.weights), part.of(x_NI)
            if part.index is not None or not all(low.bare for low in terms):
                y_NO.index_add_(0, part.positions(x_NI.device), summed(terms, part_NI))
                continue
            for low in terms:
                low.add_to(part.of(y_NO), part_NI)
        return y_NO

    def _selected(self, x_NI: torch.Tensor, route: Route) -> torch.Tensor:
        y_NO = self._product(OWN, x_NI)
        base_NO = y_NO if self.base is None else self._product(BASE, x_NI)
        out_NO = y_NO
        for name, mask_N1 in route.masks.items():
            if name not in self.groups:
                continue
            if isinstance(self.groups[name], LowRank):
                own_NO = base_NO + summed(self.terms(name), x_NI)
            else:
                own_NO = self._product(name, x_NI)
            out_NO = torch.where(mask_N1.to(x_NI.device), own_NO, out_NO)
        return out_NO


def _followed(x: torch.Tensor) -> bool:
    """Returns whether autograd or mixed precision looks at what is done with x."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)


def route_language(language: nn.Module, specs: Mapping[str, GroupSpec], *, base: str = "shared") -> None:
    """Gives the linears of a decoder's layers parameter groups, in place; their values are yet to be given.

    Every ``nn.Linear`` of every decoder layer is routed, whatever it is called: fused projections too.

    Args:
        language: The bare decoder; groups that it has already stay.
        specs: The groups to have.
        base: "shared" or "separate".

    Raises:
        ValueError: The decoder holds something that cannot be routed.
    """
    if not specs:
        return
    owner = type(language).__name__
    layers = decoder_layers(language)
    # All is looked at before anything is changed, so that a refusal leaves the model as it was.
    found = [(layer, dict(linears_of(layer, owner)), attention_of(layer, owner)) for layer in layers]
    for layer, linears, attention in found:
        if not hasattr(attention, "route_slot"):
            attention.route_slot = Slot()
            attention.register_forward_pre_hook(_take_route, with_kwargs=True)
            for module in _token_wise(layer, attention):
                module.route_slot = attention.route_slot
                module.register_forward_pre_hook(_lay_out)
                module.register_forward_hook(_put_back)
        for name, linear in linears.items():
            routed = linear if isinstance(linear, RoutedLinear) else RoutedLinear(linear, attention.route_slot)
            if routed is not linear and hasattr(linear, "adapters"):  # what hangs on it goes along
                routed.adapters = linear.adapters
                routed._forward_hooks.update(linear._forward_hooks)
            layer.set_submodule(name, routed)
            for group, spec in specs.items():
                if group not in routed.groups:
                    routed.add(group, spec)
            if base == "separate" and routed.base is None:
                routed.base = linear_like(routed)


def route_inputs(model: Any, masks: Mapping[str, torch.Tensor]) -> dict[str, Route]:
    """Returns the language model's further argument, empty when all tokens are text.

    Args:
        model: The ``ComposedModel``.
        masks: Modality -> bool (B, L): the tokens that come from a medium.
    """
    if not model.specs:
        return {}
    route = make_route(model.specs, masks, base=model.config.routed_base)
    return {} if route is None else {ROUTE: route}


def check_taken(inputs: Mapping[str, Route], language: nn.Module) -> None:
    """Refuses a language model whose linears did not get the route.

    Raises:
        ValueError: Naming the class.
    """
    if ROUTE in inputs and not inputs[ROUTE].met and not inputs[ROUTE].masks:
        raise ValueError(
            f"The linears of {type(language).__name__} got no route: it does not hand further arguments to its "
            "attention, or its linears were replaced (quantised weights have no groups)."
        )


def routed_linears(model: nn.Module) -> Iterator[tuple[str, RoutedLinear]]:
    """Yields name and module of every routed linear."""
    for name, module in model.named_modules():
        if isinstance(module, RoutedLinear):
            yield name, module


def decoder_layers(language: nn.Module) -> list[nn.Module]:
    """Returns the layers of a bare decoder.

    Raises:
        ValueError: It has no list of as many layers as its configuration says.
    """
    depth = cast("Any", language).config.num_hidden_layers
    found = [m for m in language.children() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(found) != 1:
        raise ValueError(
            f"{type(language).__name__} does not keep its {depth} layers in one list; it cannot be routed."
        )
    return list(found[0])


def _take_route(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    module.route_slot.route, module.route_slot.laid_out = kwargs.pop(ROUTE, None), False
    return args, kwargs


def _lay_out(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    slot = module.route_slot
    if slot.route is None or slot.route.within is None:
        return None
    slot.outer, slot.route, slot.laid_out = slot.route, slot.route.within, True
    return slot.route.laid_out(args[0]), *args[1:]


def _put_back(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
    slot = module.route_slot
    if not slot.laid_out:
        return None
    within, slot.route, slot.laid_out = slot.route, slot.outer, False
    return within.put_back(output)


def _token_wise(layer: nn.Module, attention: nn.Module) -> list[Any]:
    """Returns the modules of a layer whose answer for a token depends on that token alone: plain feed-forward ones."""
    found = [m for m in layer.children() if m is not attention and "MLP" in type(m).__name__]
    return [
        m
        for m in found
        if all(type(held) is nn.Linear or not list(held.parameters(recurse=False)) for held in m.modules())
    ]


def linears_of(layer: nn.Module, owner: str) -> Iterator[tuple[str, nn.Linear]]:
    """Yields path and module of every linear of a decoder layer.

    Args:
        layer: The layer.
        owner: Name of the decoder's class, for messages.

    Raises:
        ValueError: The layer holds a matrix that is no linear's.
    """
    within: tuple[str, ...] = ()
    for name, module in layer.named_modules():
        if name.startswith(within):
            continue
        if isinstance(module, RoutedLinear) or type(module) is nn.Linear:
            within += (f"{name}.",)  # groups and adapters belong to it
            yield name, module
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                raise ValueError(
                    f"{owner} cannot be routed: {type(layer).__name__} holds the matrix {name}.{key} in a "
                    f"{type(module).__name__}, and only plain linear layers can have a group per modality."
                )


def attention_of(layer: nn.Module, owner: str) -> Any:
    """Returns the module of a decoder layer that further arguments of a pass reach: its attention.

    Args:
        layer: The layer.
        owner: Name of the decoder's class, for messages.

    Raises:
        ValueError: None or several take further arguments.
    """
    open_ended = []
    for child in layer.children():
        kinds = [parameter.kind for parameter in inspect.signature(child.forward).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD in kinds and any(isinstance(m, nn.Linear) for m in child.modules()):
            open_ended.append(child)
    if len(open_ended) != 1:
        raise ValueError(
            f"{owner} cannot be routed: {type(layer).__name__} has {len(open_ended)} modules that take further "
            "arguments, and exactly one, its attention, must."
        )
    return open_ended[0]
