"""Settings of a stage for domain experts: masking of the generalist, training of the router, tiling of images.

All of it is Chimera's (Peng et al. 2024, arXiv:2412.05983), and every default is the paper's::

    gscm: 0.3                                          # or a mapping: {ratio: 0.3, unit: tile, mechanism: drop}
    router: {fit: joint, routing: label, weight: 1.0}
    tiles: {limit: 6}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Count, Number, Spec, one_of

__all__ = ["Masking", "RouterTraining", "Tiling"]

_UNITS = ("token", "tile", "sample")
_COUNTS = ("exact", "bernoulli")
_MECHANISMS = ("mask", "drop", "learned")
_RAMPS = ("constant", "linear", "cosine")
_FITS = ("joint", "separate")
_ROUTINGS = ("label", "predicted", "noise")

Share = Annotated[Number, Field(ge=0, le=1)]


class Masking(Spec):
    """Generalist-specialist collaboration masking: a share of the generalist's tokens is hidden while training.

    Written as a number, it is the ratio.

    Attributes:
        ratio: Share of a sample's general tokens that is hidden. The published model uses 0.3.
        unit: Unit that is hidden at once: a token, a tile, or all tokens of a sample.
        count: ``exact``: floor(ratio * n) of a sample's n units; ``bernoulli``: each unit is drawn independently.
            Whole samples are always drawn independently.
        mechanism: ``mask``: no token attends to a hidden one; ``drop``: hidden tokens are removed from the
            computation (same result, cheaper); ``learned``: a learned vector replaces each hidden token.
        domains: Data domains whose samples are masked; default: those that have an expert.
        schedule: How the ratio reaches its value: ``constant`` from the first step, or rising over ``ramp``,
            ``linear`` or as half a ``cosine``.
        ramp: Length of the rise: below 1 a share of all steps, else a number of steps; default: 0.1.
        whole: At ratio 1, the probability that a whole sample is hidden; otherwise all of it is seen. Default: 0.8.
        include_thumbnail: Whether tokens of an image's thumbnail may be hidden.
    """

    ratio: Share = 0.3
    unit: Annotated[Literal["token", "tile", "sample"], one_of("unit", _UNITS)] = "token"
    count: Annotated[Literal["exact", "bernoulli"], one_of("way to count", _COUNTS)] = "exact"
    mechanism: Annotated[Literal["mask", "drop", "learned"], one_of("mechanism", _MECHANISMS)] = "mask"
    domains: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    schedule: Annotated[Literal["constant", "linear", "cosine"], one_of("schedule", _RAMPS)] = "constant"
    ramp: Annotated[Number, Field(gt=0)] | None = None
    whole: Share | None = None
    include_thumbnail: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_ratio(cls, raw: Any) -> Any:
        return {"ratio": raw} if isinstance(raw, int | float) and not isinstance(raw, bool) else raw

    @model_validator(mode="after")
    def _check(self) -> Masking:
        if self.ramp is not None and self.schedule == "constant":
            message = "'{path}' has no effect with a constant schedule."
            raise FieldError(message, at=("ramp",), hint="Write 'schedule: linear', or leave 'ramp' out.")
        if self.whole is not None and self.ratio < 1:
            raise FieldError("'{path}' is only for ratio 1.", at=("whole",), hint="Leave it out.")
        return self

    @property
    def rises_over(self) -> float:
        """``ramp``, with its default."""
        return 0.1 if self.ramp is None else self.ramp

    @property
    def whole_share(self) -> float:
        """``whole``, with its default."""
        return 0.8 if self.whole is None else self.whole


def _class_weights(raw: Any) -> Any:
    if raw in (None, "balanced"):
        return raw
    if not isinstance(raw, Mapping) or not raw:
        raise FieldError("'{path}' must be 'balanced' or a mapping of classes to numbers.")
    for name, weight in raw.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e6:
            raise FieldError("'{path}' must be a number, zero or more.", at=(str(name),))
    return {str(name): float(weight) for name, weight in raw.items()}


class RouterTraining(Spec):
    """How a stage trains the router, and which expert an item is routed to in training.

    Attributes:
        fit: ``joint``: together with the other parts, during the stage; ``separate``: before the stage, as a linear
            probe on pooled features of the frozen encoder, which takes seconds.
        weight: Weight of the router's loss in a joint fit; default: 1.
        class_weights: Class weights in the router's loss: ``balanced``, or class (an expert's name, or ``none``) to
            number; default: all equal.
        l2: Penalty of a separate fit: half of this times the squared norm of the weights is added to the mean loss;
            default: 1e-4.
        routing: What routes an item in training: the ``label`` of the data, the class that the router ``predicted``,
            or the label with ``noise``.
        noise: With ``routing: noise``, the probability that an item is routed to another class; default: 0.1.
        general: Domains whose class is ``none``. Default: every domain of the data that has no expert. The router does
            not learn from items of other domains or without a domain.
    """

    fit: Annotated[Literal["joint", "separate"], one_of("way to fit", _FITS)] = "joint"
    weight: Annotated[Number, Field(ge=0)] | None = None
    class_weights: Annotated[Any, PlainValidator(_class_weights)] = None
    l2: Annotated[Number, Field(ge=0)] | None = None
    routing: Annotated[Literal["label", "predicted", "noise"], one_of("routing", _ROUTINGS)] = "label"
    noise: Share | None = None
    general: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> RouterTraining:
        for key, has_effect, hint in (
            ("noise", self.routing == "noise", "Write 'routing: noise'."),
            ("l2", self.fit == "separate", "Write 'fit: separate'."),
            ("weight", self.fit == "joint", "Leave it out: a separate fit has only this loss."),
        ):
            if getattr(self, key) is not None and not has_effect:
                raise FieldError("'{path}' has no effect here.", at=(key,), hint=hint)
        return self

    @property
    def loss_weight(self) -> float:
        """``weight``, with its default; 0 in a separate fit."""
        return 0.0 if self.fit == "separate" else 1.0 if self.weight is None else self.weight

    @property
    def penalty(self) -> float:
        """``l2``, with its default."""
        return 1e-4 if self.l2 is None else self.l2

    @property
    def noise_share(self) -> float:
        """Probability that a label is replaced; 0 without ``routing: noise``."""
        return 0.0 if self.routing != "noise" else 0.1 if self.noise is None else self.noise


class Tiling(Spec):
    """How the general processor cuts images into tiles in this stage and afterwards.

    Written as a number, it is the limit.

    Attributes:
        limit: Most tiles of an image in training; 1 cuts nothing.
        inference: Most tiles at inference, written into an exported checkpoint; default: unchanged.
        optional: Whether to accept a processor that does not cut images, instead of refusing it.
    """

    limit: Annotated[Count, Field(ge=1)]
    inference: Annotated[Count, Field(ge=1)] | None = None
    optional: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_limit(cls, raw: Any) -> Any:
        return {"limit": raw} if isinstance(raw, int) and not isinstance(raw, bool) else raw
