"""Decoupled parameter groups as an extension of the composed network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..network.extension import Extension
from ..network.forward_pass import ForwardPass, Reading
from .linear import check_taken, route_inputs, route_language
from .specs import group_specs

__all__ = ["GroupExtension"]


class GroupExtension(Extension):
    """Gives the language model's linears their groups, and each pass the route of its tokens."""

    def build(self, model: Any, config: Any) -> None:
        """Makes the groups that a configuration names."""
        model.specs = group_specs(config.routed_groups, base=config.routed_base)
        route_language(model.language_model, model.specs, base=config.routed_base)

    def language_inputs(self, model: Any, run: ForwardPass, reading: Reading) -> dict[str, Any]:
        """Returns the route, when a token is to use other weights than text does."""
        return route_inputs(model, reading.origin)

    def check_read(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> None:
        """Refuses a language model whose linears did not get the route."""
        check_taken(inputs, model.language_model)
