"""Selects the tensors that a stage trains: parts of a checkpoint by role, from its headers alone.

Parts come from the anatomy: ``projector:sees``, ``encoder:hears``, ``language``, ``embedding``, ``head``, and
``group:audio`` for decoupled groups. A domain expert is two parts, ``expert:charts`` (its encoder) and
``projector:charts``; further parts are ``router:image``, ``separators`` and ``mask``.
Selection does not need torch, so a misspelt part is reported before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mcompose.anatomy import EMBEDDING, EXPERT, HEAD, ORIGIN, UNUSED, part_label
from mcompose.errors import UnknownNameError, nearest_name
from mcompose.part_names import LANGUAGE_PARTS, qualified
from mcompose.recipe import LoraSpec, part_role

if TYPE_CHECKING:
    from mcompose.anatomy import Anatomy
    from mcompose.recipe import Stage

__all__ = ["LoraPart", "Part", "Training", "plan_training", "read_parts", "select"]


@dataclass(frozen=True)
class Part:
    """Tensors that are trained or frozen together.

    Args:
        role: Role, such as ``projector``, ``language`` or ``group``.
        which: Source, modality or name; empty if the role has one part only.
        keys: Names of its tensors in the checkpoint's files.
    """

    role: str
    which: str
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name in recipes, such as ``projector:sees``."""
        return qualified(self.role, self.which)


@dataclass(frozen=True)
class LoraPart:
    """Matrices that get low-rank factors.

    Args:
        name: Name of the part in the recipe.
        spec: Rank and scale of the factors.
        keys: Names of the matrices in the checkpoint's files.
    """

    name: str
    spec: LoraSpec
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """Tensors that one stage trains, and their learning rates.

    Args:
        direct: Key of each tensor that is trained itself, to the name of its part in the recipe.
        lora: Parts whose matrices stay frozen and get trained low-rank factors.
        rates: Name of a part to its learning rate.
    """

    direct: Mapping[str, str]
    lora: tuple[LoraPart, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)


def read_parts(anatomy: Anatomy) -> dict[str, Part]:
    """Lists all parts of a checkpoint.

    Args:
        anatomy: Anatomy of the checkpoint.

    Returns:
        Name to part, in the order of the checkpoint.
    """
    labels: dict[str, list[str]] = {}
    for key, slot in anatomy.slots.items():
        if slot.part != UNUSED:
            labels.setdefault(part_label(slot.name, slot.part), []).append(key)
    return {label: Part(*part_role(label), tuple(keys)) for label, keys in labels.items()}


def select(name: str, parts: Mapping[str, Part], *, tied: bool = False) -> tuple[str, ...]:
    """Selects the tensors that a part's name stands for.

    Args:
        name: Name of the part in the recipe.
        parts: All parts of the checkpoint, by name.
        tied: Whether the head shares the embedding's tensor.

    Returns:
        Keys of the tensors, in the order of the checkpoint.

    Raises:
        UnknownNameError: The checkpoint has no such part.
    """
    role, which = part_role(name)
    trainable = [part for part in parts.values() if part.role != ORIGIN]  # the base of low-rank groups is never trained
    if role == "all":
        # An expert's encoder is trained only if the recipe names it.
        return tuple(key for part in trainable if part.role != EXPERT for key in part.keys)
    if role == "llm":
        return tuple(key for part in trainable if part.role in LANGUAGE_PARTS for key in part.keys)
    if role == "key":
        keys = tuple(key for part in trainable for key in part.keys if fnmatchcase(key, which))
        if not keys:
            example = next((part.keys[0] for part in trainable if part.keys), "")
            raise UnknownNameError(f"No tensor matches '{name}'.", hint=f"Tensors are named like '{example}'.")
        return keys
    keys = tuple(key for part in trainable if part.role == role and which in {"", part.which} for key in part.keys)
    if not keys:
        raise _no_part(name, [part.name for part in trainable], tied=tied)
    return keys


def _no_part(name: str, known: list[str], *, tied: bool) -> UnknownNameError:
    role, which = part_role(name)
    if role == HEAD and tied:
        return UnknownNameError(
            "'head' cannot be trained: this checkpoint's head shares the embedding's tensor.",
            hint=f"Train '{EMBEDDING}'.",
        )
    of_role = [part for part in known if part.partition(":")[0] == role]
    if not of_role:
        return UnknownNameError(f"This checkpoint has no part '{role}'.", hint=f"Its parts are: {', '.join(known)}.")
    return UnknownNameError(f"This checkpoint has no part '{role}:{which}'.", hint=nearest_name(name, of_role))


def plan_training(
    stage: Stage,
    parts: Mapping[str, Part],
    *,
    matrices: Iterable[str],
    tied: bool = False,
    added: Sequence[str] = (),
) -> Training:
    """Decides which tensors a stage trains, and their learning rates.

    Args:
        stage: Stage of the recipe.
        parts: All parts of the checkpoint, by name.
        matrices: Keys of the checkpoint's two-dimensional tensors.
        tied: Whether the head shares the embedding's tensor.
        added: Names of parts that the stage adds and trains (``group:audio``).

    Returns:
        The plan; no tensor is trained twice.

    Raises:
        UnknownNameError: 'train', 'lora' or 'lr' names something that does not exist, or two entries share a tensor.
    """
    direct: dict[str, str] = {}
    for name in stage.train:
        for key in select(name, parts, tied=tied):
            direct.setdefault(key, name)
    lora, taken = [], dict(direct)
    for name, spec in stage.lora.items():
        chosen = _targets(name, spec, parts, matrices=set(matrices), tied=tied)
        twice = next((key for key in chosen if key in taken), None)
        if twice is not None:
            raise UnknownNameError(
                f"'{twice}' is trained by '{taken[twice]}' and adapted by 'lora.{name}'.", hint="Remove one of them."
            )
        taken |= dict.fromkeys(chosen, f"lora.{name}")
        lora.append(LoraPart(name, spec, chosen))
    names = list(dict.fromkeys([*direct.values(), *stage.lora, *added]))
    return Training(direct, tuple(lora), _rates(stage, names))


def _targets(
    name: str, spec: LoraSpec, parts: Mapping[str, Part], *, matrices: set[str], tied: bool
) -> tuple[str, ...]:
    """Returns the weights of the part's linear layers that the spec names."""
    if part_role(name)[0] == EMBEDDING:
        raise UnknownNameError("'lora.embedding' is not supported.", hint="Add 'embedding' to 'train' instead.")
    keys = [key for key in select(name, parts, tied=tied) if key in matrices and key.endswith(".weight")]
    keys = [key for key in keys if "embed" not in key.split(".")[-2]]  # a table of positions is not a linear layer
    if spec.targets is None:
        return tuple(keys)
    layers = dict.fromkeys(key.split(".")[-2] for key in keys)
    for target in spec.targets:
        if target not in layers:
            raise UnknownNameError(
                f"'lora.{name}.targets' names '{target}', which '{name}' does not have.",
                hint=nearest_name(target, layers),
            )
    return tuple(key for key in keys if key.split(".")[-2] in spec.targets)


def _rates(stage: Stage, names: list[str]) -> dict[str, float]:
    if not isinstance(stage.lr, Mapping):
        return dict.fromkeys(names, float(stage.lr))
    rates_by_role: dict[tuple[str, str], float] = {part_role(name): rate for name, rate in stage.lr.items()}
    wanted = {name: part_role(name) for name in names}
    for name in stage.lr:
        role, which = part_role(name)
        if not any(role == r and which in {"", w} for r, w in wanted.values()):
            raise UnknownNameError(f"'lr' names '{name}', which is not trained.", hint=nearest_name(name, names))
    rates = {}
    for name, (role, which) in wanted.items():
        rate = rates_by_role.get((role, which), rates_by_role.get((role, "")))
        if rate is None:
            raise UnknownNameError(
                f"'lr' does not name '{name}', which is trained.", hint=f"Add a rate, such as '{name}: 1e-4'."
            )
        rates[name] = rate
    return rates
