"""One encoder of a mix, as it was decided: its entries in the configurations, its tensors and its processor.

Imports torch and transformers; used by recipes with mixed encoders only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import ENCODER
from mcompose.compose.experts.encoder import find_encoder, find_qformer
from mcompose.compose.experts.projector import opened
from mcompose.compose.towers import OutputTower, name_inside, tower_job
from mcompose.compose.vision_mix.measure import measure_encoder, measure_source
from mcompose.errors import CompositionError
from mcompose.merge import Dropped, TensorJob, copy_job
from mcompose.modeling import Family, family_of
from mcompose.on_disk import COMPOSED_TYPE
from mcompose.part_names import TOWER_PARTS, qualified

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint
    from mcompose.merge import SourceParts
    from mcompose.recipe import LoadedRecipe, MixedEncoder, VisionMix

__all__ = ["OutputEncoder", "open_encoder", "open_source_tower"]


@dataclass(frozen=True)
class OutputEncoder:
    """One encoder of a mix.

    Args:
        name: Name of the encoder in the mix.
        entry: Entry of the encoder in the network's configuration.
        prepared: Entry of the encoder in the processor's configuration.
        jobs: Jobs of its tensors.
        dropped: Tensors of its checkpoint that the output does not hold.
        checkpoint: The encoder's checkpoint; None for the tower of a source.
        processor_folder: Folder of the processor that it brings; None where plain pixels are made.
        colour: Mean colour of its pixels, 0 to 255; empty where it states none.
        size: Side of what it sees, where it states one.
    """

    name: str
    entry: Mapping[str, Any]
    prepared: Mapping[str, Any]
    jobs: tuple[TensorJob, ...]
    dropped: tuple[Dropped, ...] = ()
    checkpoint: Checkpoint | None = None
    processor_folder: Path | None = None
    colour: tuple[int, ...] = ()
    size: int | None = None

    @property
    def class_name(self) -> str:
        """Class or model type of the encoder, for reports."""
        return self.entry["class_name"] if "class_name" in self.entry else self.entry["source"]["model_type"]


def open_encoder(
    name: str, spec: MixedEncoder, mix: VisionMix, loaded: LoadedRecipe, *, weights: bool
) -> OutputEncoder:
    """Opens an encoder of a mix: config and headers, no weights.

    Args:
        name: Name of the encoder in the mix.
        spec: Entry of the encoder in the recipe.
        mix: The mix.
        loaded: The recipe.
        weights: Whether its weights will be read.

    Raises:
        CompositionError: Its checkpoint has no such encoder, or encoder and processor do not fit together.
        CheckpointError: A checkpoint cannot be read.
    """
    who = f"encoder '{name}' of '{mix.name}'"
    checkpoint = opened(who, spec.encoder, loaded, weights=weights)
    if checkpoint.quantised:
        raise CompositionError(
            f"The {who} is quantised ({checkpoint.quantised}) and cannot be copied.",
            hint="Use the checkpoint that it was quantised from.",
        )
    if spec.part == "qformer":
        found = find_qformer(checkpoint, who=who)
    else:
        found = find_encoder(checkpoint, modality="image", who=who)
    folder = checkpoint.folder
    if spec.processor is not None:
        folder = opened(f"processor of {who}", spec.processor, loaded, weights=False).folder
    entry = {
        "model_type": found.model_type,
        "class_name": found.class_name,
        "config": found.config,
        "layer": spec.layer,
        "leading": found.leading,
        "class_token": spec.class_token == "keep",  # noqa: S105 - a word of recipes
    }
    measured = measure_encoder(who, name, entry, spec, folder=folder, side=mix.views.size)
    part = qualified(ENCODER, mix.name)
    head = f"model.towers.{mix.name}.encoders.{name}.encoder."
    jobs = [copy_job(head + path, checkpoint.tensors[key], part, source=name) for path, key in found.keys.items()]
    return OutputEncoder(
        name,
        measured.entry,
        measured.prepared,
        tuple(replace(job, part=part) for job in jobs),
        tuple(Dropped(name, key, ENCODER, reason) for key, reason in found.unused.items()),
        checkpoint,
        folder if measured.own_processor else None,
        measured.colour,
        measured.size,
    )


def open_source_tower(name: str, source: SourceParts, mix: VisionMix) -> OutputEncoder:
    """Makes an encoder of the image tower of a source, with its trained projector.

    Args:
        name: Name of the encoder in the mix.
        source: The source.
        mix: The mix.

    Raises:
        CompositionError: The source has no image tower, or one that a mix cannot hold.
    """
    tower = _image_tower(name, source)
    _refuse_family(name, tower)
    assert tower.processor_folder is not None, "it is a source's"
    measured = measure_source(name, tower, side=mix.views.size)
    head = f"model.towers.{mix.name}.encoders.{name}.tower."
    jobs = []
    for slot in source.anatomy.slots.values():
        inside = name_inside(slot, tower) if slot.part in TOWER_PARTS else None
        if inside is not None:
            jobs.append(tower_job(source, slot, head + inside, mix.name))
    return OutputEncoder(
        name,
        measured.entry,
        measured.prepared,
        tuple(jobs),
        processor_folder=tower.processor_folder,
        size=measured.size,
    )


def _image_tower(name: str, source: SourceParts) -> OutputTower:
    if "image" not in source.anatomy.modalities:
        offered = ", ".join(source.anatomy.modalities) or "text only"
        raise CompositionError(
            f"Encoder '{name}' is the image tower of '{source.name}', which takes {offered}.",
            hint="Name a source that takes images.",
        )
    if source.anatomy.model_type != COMPOSED_TYPE:
        return OutputTower(name, source, "", ("image",))
    config = source.checkpoint.config
    inner = next(key for key, entry in config["sources"].items() if "image" in entry["modalities"])
    tower = OutputTower(name, source, inner, ("image",))
    if tower.around("prefix_tokens") or tower.around("suffix_tokens"):
        raise CompositionError(
            f"The image tower of '{source.name}' has learned vectors around its images, which a mix cannot keep.",
            hint="Use the source that the tower came from.",
        )
    return tower


def _refuse_family(name: str, tower: OutputTower) -> None:
    """Refuses towers whose family does more than put vectors in places, since a mix does no more."""
    family, plain = family_of(tower.model_type), Family()
    reasons = {
        "mrope": "counts positions on the grid of an image",
        "attention": "lets the tokens of an image see each other",
        "deepstack": "reads features in several layers",
        "structure": "has learned vectors for tokens around an image",
        "first_position": "counts positions from another number",
        "head": "scales its scores otherwise",
        "features": "reads images by a function of its own",
        "needs_text": "reads features of one class of language model only",
    }
    for key, reason in reasons.items():
        if getattr(family, key) != getattr(plain, key):
            raise CompositionError(
                f"The image tower of '{tower.source_name}' ({tower.model_type}) cannot be mixed as '{name}': its "
                f"family {reason}.",
                hint="Compose this source without 'vision_mix', or name its encoder by 'encoder:'.",
            )
