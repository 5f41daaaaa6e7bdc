"""The sources of a recipe, opened: their files, their parts, and which modality each brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcompose.anatomy import read_anatomy
from mcompose.checkpoint import open_adapter, open_checkpoint
from mcompose.compose.adapted import bind_adapter
from mcompose.compose.groups import text_factors
from mcompose.errors import AnatomyError, CheckpointError, CompositionError, nearest_name
from mcompose.merge import SourceParts
from mcompose.modalities import MODALITIES

if TYPE_CHECKING:
    from mcompose.recipe import LoadedRecipe, Source, VisionMix
    from mcompose.refs import ModelRef

__all__ = ["SourceSet", "claim_modalities", "open_parts", "open_sources"]

BASE = "base"


@dataclass(frozen=True)
class SourceSet:
    """All sources of a recipe.

    Args:
        sources: In the recipe's order.
        base: The base language model, if the recipe names one.
        modalities: Modality to the name of the source that brings it, in the order of ``MODALITIES``.
        towers: Names of the sources whose encoders and projectors the output holds, in the recipe's order.
        mixed: Names of the sources whose image towers are part of a mix of encoders, in the mix's order.
    """

    sources: tuple[SourceParts, ...]
    base: SourceParts | None
    modalities: dict[str, str]
    towers: tuple[str, ...]
    mixed: tuple[str, ...] = ()

    @property
    def readers(self) -> dict[str, str]:
        """Modality to the source whose language model was trained on it; a new mix of encoders has none.

        Raises:
            CompositionError: Several sources of a mix could be meant.
        """
        names = {source.name for source in self.sources}
        found = {modality: name for modality, name in self.modalities.items() if name in names}
        for modality in [m for m, name in self.modalities.items() if name not in names] if self.mixed else []:
            if len(self.mixed) > 1:
                raise CompositionError(
                    f"The towers of {' and '.join(repr(name) for name in self.mixed)} are mixed, so that their "
                    f"{modality} tokens have no one language model of their own.",
                    hint="Leave 'compose.decouple' out, or mix the tower of one source only.",
                )
            found[modality] = next(iter(self.mixed))
        return {modality: found[modality] for modality in self.modalities if modality in found}

    def get(self, name: str) -> SourceParts:
        """Returns the source of this name."""
        return next(source for source in self.everything if source.name == name)

    @property
    def everything(self) -> tuple[SourceParts, ...]:
        """The sources, then the base."""
        return self.sources if self.base is None else (*self.sources, self.base)


def open_sources(loaded: LoadedRecipe, *, weights: bool) -> SourceSet:
    """Opens everything that a recipe names: configs and headers, no weights.

    Args:
        loaded: The recipe.
        weights: Whether the weights will be read; Hub files are fetched only then.

    Returns:
        The opened sources.

    Raises:
        CheckpointError: A source cannot be read.
        AnatomyError: A source's parts cannot be told apart.
        CompositionError: Two sources bring one modality, or one is asked for what it does not have.
    """
    folder = loaded.path.parent
    specs = loaded.recipe.sources
    sources = tuple(
        open_parts(spec.model, name=spec.name, relative_to=folder, weights=weights, adapter=spec.adapter)
        for spec in specs
    )
    reference = loaded.recipe.base
    base = open_parts(reference, name=BASE, relative_to=folder, weights=weights) if reference else None
    mix = loaded.recipe.compose.vision_mix
    claims = claim_modalities(sources, specs, share_towers=loaded.recipe.compose.towers == "merge", mix=mix)
    brought = list(claims.values())
    towers = tuple(s.name for s in sources if s.name in brought)
    if not sources and base is not None:  # the base is all that there is of a language model
        sources, base = (base,), None
    mixed = tuple(dict.fromkeys(mix.sources.values())) if mix is not None else ()
    return SourceSet(sources, base, claims, towers, mixed)


def open_parts(
    ref: ModelRef, *, name: str, relative_to: Path, weights: bool, adapter: ModelRef | None = None
) -> SourceParts:
    """Opens one source and tells its parts apart.

    Args:
        ref: Where it lives.
        name: Its name in the recipe.
        relative_to: Folder that relative paths start from.
        weights: Whether its weights will be read.
        adapter: PEFT adapter to fold.

    Returns:
        The source.

    Raises:
        CheckpointError: It cannot be read.
        AnatomyError: Its parts cannot be told apart.
    """
    try:
        checkpoint = open_checkpoint(ref, relative_to=relative_to, weights=weights)
        anatomy = read_anatomy(checkpoint.config, checkpoint.shapes)
        opened = None
        if adapter is not None:
            bare = open_adapter(adapter, relative_to=relative_to, weights=weights)
            checkpoint, anatomy, opened = bind_adapter(bare, checkpoint, anatomy)
    except (CheckpointError, AnatomyError) as error:
        raise type(error)(_placed(error.message, name=name, ref=ref), hint=error.hint) from error
    return SourceParts(name, checkpoint, anatomy, opened, text_factors(checkpoint, anatomy))


def _placed(message: str, *, name: str, ref: ModelRef) -> str:
    """A complaint about a checkpoint's files, with the source's name, and where it lives unless that is said."""
    where = [] if str(ref) in message else [f"'{ref}'"]
    who = [] if name == str(ref) else [f"source '{name}'"]
    place = " at ".join([*who, *where])
    return f"{place[0].upper()}{place[1:]}: {message}" if place else message


def claim_modalities(
    sources: Sequence[SourceParts],
    specs: Sequence[Source],
    *,
    share_towers: bool = False,
    mix: VisionMix | None = None,
) -> dict[str, str]:
    """Decides which source brings which modality.

    Args:
        sources: The opened sources.
        specs: What the recipe says of them, in the same order.
        share_towers: True when sources of one modality merge their towers; the first then stands for all.
        mix: Mixed image encoders, which take the place of the towers of sources that are among them.

    Returns:
        Modality to source, or to the mix, in the order of ``MODALITIES``.

    Raises:
        CompositionError: A source is asked for what it does not have, or two bring the same.
    """
    claims: dict[str, list[str]] = {}
    mixed = list(mix.sources.values()) if mix is not None else []
    for modality in mix.modalities if mix is not None else ():
        claims[modality] = [mix.name]  # pyright: ignore[reportOptionalMemberAccess]
    for source, spec in zip(sources, specs, strict=True):
        for modality in spec.modalities if spec.modalities is not None else source.anatomy.modalities:
            if modality not in source.anatomy.modalities:
                offered = ", ".join(source.anatomy.modalities) or "text only"
                raise CompositionError(
                    f"Source '{source.name}' does not take '{modality}'; it takes {offered}.",
                    hint=nearest_name(modality, source.anatomy.modalities),
                )
            if modality != "image" or source.name not in mixed:
                claims.setdefault(modality, []).append(source.name)
    for modality, names in claims.items():
        if len(names) > 1 and not share_towers:
            listed = " and ".join(f"'{name}'" for name in names)
            raise CompositionError(
                f"{listed} both bring '{modality}'."
                if mix is not None and mix.name in names
                else f"Sources {listed} both bring '{modality}'.",
                hint=f"Say which one the output takes: give the other `modalities:` without '{modality}' "
                "(an empty list merges its language model only).",
            )
    return {modality: claims[modality][0] for modality in MODALITIES if modality in claims}
