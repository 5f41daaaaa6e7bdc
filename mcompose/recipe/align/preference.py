"""Settings of a stage that learns from preferences: two answers to one prompt, of which one was chosen.

All settings are optional::

    dpo: {beta: 0.1, loss: sigmoid}                    # or the number alone: dpo: 0.1
    dpo: {}                                            # the defaults

The data of such a stage are pairs: a prompt, ``chosen`` and ``rejected``; see the align room's ``preference_records``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Number, Spec, one_of

__all__ = ["Preference", "check_preference"]


class Preference(Spec):
    """Direct preference optimisation: the stage's only loss.

    Written as a number, it is beta.

    Attributes:
        beta: Strength of the pull towards the model at the start of the stage. Chimera's value is not published; 0.1
            is the common one.
        loss: ``sigmoid``, the loss of the paper.
    """

    beta: Annotated[Number, Field(gt=0)] = 0.1
    loss: Annotated[Literal["sigmoid"], one_of("loss", ("sigmoid",))] = "sigmoid"

    @model_validator(mode="before")
    @classmethod
    def _from_beta(cls, raw: Any) -> Any:
        return {"beta": raw} if isinstance(raw, int | float) and not isinstance(raw, bool) else raw


def check_preference(stage: Any) -> None:
    """Refuses settings that cannot be combined with ``dpo``.

    Args:
        stage: The stage, an ``align.stages.Stage``.

    Raises:
        FieldError: The stage has such a setting.
    """
    if stage.dpo is None:
        return
    reasons = (
        ("packing", stage.packing, "the answers of a packed row cannot be scored separately."),
        ("gscm", stage.gscm is not None, "the reference scores the answers with no token hidden."),
        (
            "router",
            stage.router is not None,
            "a router cannot learn from pairs; the data's domains choose the experts.",
        ),
        ("feature_cache", stage.feature_cache, "every image or sound is seen with two answers, and is not cached."),
        ("sharding", stage.sharding != "none", "the reference is scored by the whole model before the first step."),
    )
    for key, is_set, reason in reasons:
        if is_set:
            message = f"'{{path}}' cannot be combined with 'dpo': {reason}"
            raise FieldError(message, at=(key,), hint=f"Leave '{key}' out.")
    for number, name in enumerate(stage.train):
        if name.partition(":")[0] in {"router", "routers"}:
            hint = "Train the router in an earlier stage."
            raise FieldError("'{path}' is the router, which cannot learn from pairs.", at=("train", number), hint=hint)
    for number, spec in enumerate(stage.data):
        if spec.streaming:
            message = "'{path}' cannot be combined with 'dpo': the pairs of a stream cannot be scored beforehand."
            raise FieldError(message, at=("data", number, "streaming"), hint="Leave 'streaming' out.")
        if spec.task is not None:
            message = "'{path}' cannot be combined with 'dpo': templates make one answer of a record, not a pair."
            raise FieldError(message, at=("data", number, "task"), hint="Write the pairs as conversations.")
