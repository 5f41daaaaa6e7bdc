"""What a stage that learns from preferences says: two answers to one prompt, of which one was chosen.

All of it is optional::

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
        beta: How strongly the model is held to what it was when the stage began. Chimera's is not published; 0.1 is
            the common value.
        loss: ``sigmoid``, that of the paper.
    """

    beta: Annotated[Number, Field(gt=0)] = 0.1
    loss: Annotated[Literal["sigmoid"], one_of("loss", ("sigmoid",))] = "sigmoid"

    @model_validator(mode="before")
    @classmethod
    def _from_beta(cls, raw: Any) -> Any:
        return {"beta": raw} if isinstance(raw, int | float) and not isinstance(raw, bool) else raw


def check_preference(stage: Any) -> None:
    """Refuses what a stage with ``dpo`` cannot have beside it.

    Args:
        stage: The stage; its routes and features must be those that the reference had.

    Raises:
        FieldError: It has.
    """
    if stage.dpo is None:
        return
    reasons = (
        ("packing", stage.packing, "a packed row has no answers that could be told apart."),
        ("gscm", stage.gscm is not None, "the answers are weighed as they are given, and then nothing is hidden."),
        ("router", stage.router is not None, "pairs teach a router nothing; the data's domains choose the experts."),
        ("feature_cache", stage.feature_cache, "every medium is seen with two answers, and not kept."),
        ("sharding", stage.sharding != "none", "the reference is what the whole model says before the first step."),
    )
    for key, given, reason in reasons:
        if given:
            raise FieldError(f"'{{path}}' goes with no 'dpo': {reason}", at=(key,), hint=f"Leave '{key}' out.")
    for number, name in enumerate(stage.train):
        if name.partition(":")[0] in {"router", "routers"}:
            hint = "Train it in the stage before."
            raise FieldError("'{path}' is the router, which pairs teach nothing.", at=("train", number), hint=hint)
    for number, spec in enumerate(stage.data):
        if spec.streaming:
            message = "'{path}' goes with no 'dpo': the pairs of a stream cannot be weighed beforehand."
            raise FieldError(message, at=("data", number, "streaming"), hint="Leave 'streaming' out.")
