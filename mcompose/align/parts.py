"""Which tensors a stage trains: parts of a checkpoint by role, from its headers alone.

A part is what the anatomy says: ``projector:sees``, ``encoder:hears``, ``language``, ``embedding``, ``head``, and
``group:audio`` for decoupled groups. A domain expert is two parts, ``expert:charts`` (its encoder) and
``projector:charts``; beside them stand ``router:image``, ``separators`` and ``mask``.
Selection needs no torch, so a misspelt part is told before a model is loaded.
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

__all__ = ["LoraPart", "Part", "Training", "parts_of", "plan_training", "select"]


@dataclass(frozen=True)
class Part:
    """Tensors that are trained or frozen together.

    Args:
        role: ``projector``, ``language``, ``group``...
        which: Source, modality or name; empty where a role has one part.
        keys: Keys of its tensors in the checkpoint's files.
    """

    role: str
    which: str
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """As recipes write it: ``projector:sees``."""
        return qualified(self.role, self.which)


@dataclass(frozen=True)
class LoraPart:
    """Matrices that get low-rank factors.

    Args:
        name: Name as the recipe writes it.
        spec: Rank and scale.
        keys: The matrices.
    """

    name: str
    spec: LoraSpec
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """What one stage trains.

    Args:
        direct: Key of each tensor that is trained itself to the name that the recipe gives its part.
        lora: Matrices that stay frozen under trained factors.
        rates: Name of a part to its learning rate.
    """

    direct: Mapping[str, str]
    lora: tuple[LoraPart, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)


def parts_of(anatomy: Anatomy) -> dict[str, Part]:
    """Returns all parts of a checkpoint.

    Args:
        anatomy: Anatomy of its files.

    Returns:
        Name to part, in the order of the checkpoint.
    """
    labels: dict[str, list[str]] = {}
    for key, slot in anatomy.slots.items():
        if slot.part != UNUSED:
            labels.setdefault(part_label(slot.name, slot.part), []).append(key)
    return {label: Part(*part_role(label), tuple(keys)) for label, keys in labels.items()}


def select(name: str, parts: Mapping[str, Part], *, tied: bool = False) -> tuple[str, ...]:
    """Returns the tensors that a part's name stands for.

    Args:
        name: Name as the recipe writes it.
        parts: Parts of the checkpoint.
        tied: Whether its head is its embedding.

    Returns:
        Their keys, in the order of the checkpoint.

    Raises:
        UnknownNameError: The checkpoint has no such part.
    """
    role, which = part_role(name)
    able = [part for part in parts.values() if part.role != ORIGIN]  # what low-rank groups add to is never trained
    if role == "all":
        # An expert's encoder is trained only where it is named.
        return tuple(key for part in able if part.role != EXPERT for key in part.keys)
    if role == "llm":
        return tuple(key for part in able if part.role in LANGUAGE_PARTS for key in part.keys)
    if role == "key":
        keys = tuple(key for part in able for key in part.keys if fnmatchcase(key, which))
        if not keys:
            some = next((part.keys[0] for part in able if part.keys), "")
            raise UnknownNameError(f"No tensor fits '{name}'.", hint=f"Tensors are named like '{some}'.")
        return keys
    keys = tuple(key for part in able if part.role == role and which in {"", part.which} for key in part.keys)
    if not keys:
        raise _no_part(name, [part.name for part in able], tied=tied)
    return keys


def _no_part(name: str, known: list[str], *, tied: bool) -> UnknownNameError:
    role, which = part_role(name)
    if role == HEAD and tied:
        return UnknownNameError("This checkpoint's head is its embedding.", hint=f"Train '{EMBEDDING}' instead.")
    of_role = [part for part in known if part.partition(":")[0] == role]
    if not of_role:
        return UnknownNameError(f"This checkpoint has no '{role}'.", hint=f"Its parts: {', '.join(known)}.")
    return UnknownNameError(f"This checkpoint has no part '{role}:{which}'.", hint=nearest_name(name, of_role))


def plan_training(
    stage: Stage,
    parts: Mapping[str, Part],
    *,
    matrices: Iterable[str],
    tied: bool = False,
    added: Sequence[str] = (),
) -> Training:
    """Decides what is trained, and how fast.

    Args:
        stage: The recipe's stage.
        parts: Parts of the checkpoint.
        matrices: Keys of its two-dimensional tensors.
        tied: Whether its head is its embedding.
        added: Names of parts that the stage adds and trains (``group:audio``).

    Returns:
        The decision; nothing is trained twice.

    Raises:
        UnknownNameError: A part, a layer or a learning rate names nothing.
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
                f"'{twice}' is trained by '{taken[twice]}' and adapted by 'lora.{name}'.", hint="Keep one of them."
            )
        taken |= dict.fromkeys(chosen, f"lora.{name}")
        lora.append(LoraPart(name, spec, chosen))
    names = list(dict.fromkeys([*direct.values(), *stage.lora, *added]))
    return Training(direct, tuple(lora), _rates(stage, names))


def _targets(
    name: str, spec: LoraSpec, parts: Mapping[str, Part], *, matrices: set[str], tied: bool
) -> tuple[str, ...]:
    """Weights of the part's linear layers that the spec names."""
    if part_role(name)[0] == EMBEDDING:
        raise UnknownNameError("'lora.embedding' is not offered.", hint="Train 'embedding' itself.")
    keys = [key for key in select(name, parts, tied=tied) if key in matrices and key.endswith(".weight")]
    keys = [key for key in keys if "embed" not in key.split(".")[-2]]  # tables of positions are no linear layers
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
    given: dict[tuple[str, str], float] = {part_role(name): rate for name, rate in stage.lr.items()}
    wanted = {name: part_role(name) for name in names}
    for name in stage.lr:
        role, which = part_role(name)
        if not any(role == r and which in {"", w} for r, w in wanted.values()):
            raise UnknownNameError(f"'lr' names '{name}', which is not trained.", hint=nearest_name(name, names))
    rates = {}
    for name, (role, which) in wanted.items():
        rate = given.get((role, which), given.get((role, "")))
        if rate is None:
            raise UnknownNameError(f"'lr' leaves out '{name}'.", hint=f"Write '{name}: 1e-4', for example.")
        rates[name] = rate
    return rates
