"""Soft mixtures of low-rank experts in a recipe (SMoLA).

Paper: Wu et al. 2023, arXiv:2312.00968 (Omni-SMoLA), whose body was not available: what its abstract leaves open is a
setting here (see ``modeling/adapters/mixing.py``)::

    compose:
      adapters:
        mm: {experts: 16, rank: 4}                                # all tokens
        mv: {modalities: [image, video], experts: 16, rank: 4}
        mt: {modalities: [text], experts: 16, rank: 4}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mcompose.errors import nearest_name
from mcompose.modalities import MODALITIES
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Count, Number, Reference, SourceName, Spec, one_of

if TYPE_CHECKING:
    from mcompose.recipe.schema import Recipe

__all__ = ["AdapterSetName", "AdapterSpec", "check_adapters"]

_MODES = ("token", "prefix", "causal", "slot", "merged")
_NORMS = ("l2", "rms", "none")
_TOKENS = ("text", *MODALITIES)
_ENCODER = "encoder:"


def _place(raw: Any) -> Any:
    if raw == "language" or (isinstance(raw, str) and raw.startswith(_ENCODER) and raw != _ENCODER):
        return raw
    raise FieldError("'{path}' must be 'language' or 'encoder:<source>'.", hint="Leave it out for the language model.")


AdapterSetName = SourceName


class AdapterSpec(Spec):
    """A soft mixture of low-rank experts beside linears, for the tokens of some modalities.

    Attributes:
        modalities: Modalities whose tokens it sees, ``text`` among them; default: all tokens.
        experts: Number of experts.
        rank: Rank of each expert.
        alpha: Scale of what it adds, divided by the rank; default: the rank, so that the scale is 1.
        mode: ``token``: each token mixes the experts by its own gates. ``prefix``: slots are made of the prompt, and
            every token combines them. ``causal``: slots run along with the tokens (experimental). ``merged``: one
            merged expert a sample, chosen by the prompt. ``slot``: slots are made of all tokens, for encoders only.
        targets: Last words of the names of the linears (``q_proj``); default: all.
        layers: First and last layer, both included; default: all.
        normalise: What the router's inputs are normalised by: ``l2`` (with a learned scale), ``rms`` or ``none``.
        on: ``language``, or ``encoder:<source>`` for the linears of a source's encoder.
        init: LoRA checkpoints to begin with, one for each expert; their ranks may differ. Default: new experts, which
            change nothing until they are trained.
    """

    modalities: tuple[Annotated[str, one_of("modality", _TOKENS)], ...] | None = None
    experts: Annotated[Count, Field(ge=1, le=1024)] = 16
    rank: Annotated[Count, Field(ge=1, le=4096)] = 4
    alpha: Annotated[Number, Field(gt=0)] | None = None
    mode: Annotated[Literal["token", "prefix", "causal", "slot", "merged"], one_of("mode", _MODES)] = "token"
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    layers: tuple[Count, Count] | None = None
    normalise: Annotated[Literal["l2", "rms", "none"], one_of("normalisation", _NORMS)] = "l2"
    on: Annotated[str, BeforeValidator(_place)] = "language"
    init: Annotated[tuple[Reference, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> AdapterSpec:
        if self.layers is not None and not 0 <= self.layers[0] <= self.layers[1]:
            hint = "Layers count from 0, and both ends are included."
            raise FieldError("'{path}' must be [first, last].", at=("layers",), hint=hint)
        if self.mode == "slot" and self.on == "language":
            raise FieldError(
                "'{path}: slot' cannot stand beside a language model: a slot holds tokens that come later, which a "
                "model that writes from left to right must not see.",
                at=("mode",),
                hint="Write 'mode: prefix', the nearest that a decoder can do, or 'on: encoder:<source>'.",
            )
        if self.on != "language":
            for key in ("modalities", "init"):
                if getattr(self, key) is not None:
                    raise FieldError("'{path}' cannot be set beside an encoder.", at=(key,), hint="Leave it out.")
            if self.mode not in ("token", "slot"):
                raise FieldError(
                    f"'{{path}}: {self.mode}' has no meaning in an encoder, which has no prompt.",
                    at=("mode",),
                    hint="Write 'token' or 'slot'.",
                )
        if self.init is not None:
            if "rank" in self.model_fields_set or self.alpha is not None:
                key = "alpha" if self.alpha is not None else "rank"
                raise FieldError("'{path}' is that of the checkpoints in 'init'.", at=(key,), hint="Leave it out.")
            if "experts" in self.model_fields_set and self.experts != len(self.init):
                raise FieldError(
                    f"'{{path}}' is {self.experts}, and 'init' names {len(self.init)} checkpoints.",
                    at=("experts",),
                    hint="Leave it out: there is one expert for each checkpoint.",
                )
        return self

    @property
    def count(self) -> int:
        """Number of experts."""
        return len(self.init) if self.init is not None else self.experts


def check_adapters(recipe: Recipe) -> None:
    """Checks adapters against the rest of the recipe.

    Args:
        recipe: The recipe.

    Raises:
        FieldError: A rule is broken; the error names the key.
    """
    sets = recipe.compose.adapters
    if not sets:
        return
    mix = recipe.compose.vision_mix
    towers = [*recipe.source_names, *([mix.name] if mix is not None else [])]
    for name, spec in sets.items():
        tower = spec.on.removeprefix(_ENCODER)
        if spec.on != "language" and tower not in towers:
            at = ("compose", "adapters", name, "on")
            raise FieldError(f"'{{path}}': '{tower}' is not a source.", at=at, hint=nearest_name(tower, towers))
    if recipe.output.format not in {"auto", "composed"}:
        raise FieldError(
            f"'{{path}}: {recipe.output.format}' cannot hold adapters.",
            at=("output", "format"),
            hint="Write 'composed', or leave out 'compose.adapters'.",
        )
