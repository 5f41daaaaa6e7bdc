"""Mixed image encoders as an extension of a composed output: one tower that the recipe puts together.

Paper: Lin et al. 2023, arXiv:2311.07575 (SPHINX); see ``modeling/vision_mix``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.anatomy import PROJECTOR
from mcompose.compose.extension import Addition, Draft, Extension
from mcompose.compose.foreign_errors import naming_source
from mcompose.compose.provenance import portable_ref
from mcompose.compose.towers import TORCH_WORDS, OutputTower
from mcompose.errors import CompositionError
from mcompose.ledger import SourceRow
from mcompose.merge import TensorJob, new_job, start_of
from mcompose.on_disk import PROCESSORS
from mcompose.part_names import qualified

if TYPE_CHECKING:
    from mcompose.checkpoint import Checkpoint
    from mcompose.compose.vision_mix.encoder import OutputEncoder
    from mcompose.recipe import Recipe, Stream, VisionMix

__all__ = ["MixAddition", "VisionMixExtension"]

_GREY = (127, 127, 127)
_SMALL = 0.02 * math.sqrt(3)
"""Bound of the uniform draw with standard deviation 0.02."""
_STARTS: Mapping[str, Mapping[str, Any]] = {
    "start": {"between": (0.0, 1.0)},  # as the paper's code draws them
    "end": {"between": (0.0, 1.0)},
    "empty": {"bound": _SMALL},
}


@dataclass(frozen=True)
class MixAddition(Addition):
    """A mix of image encoders.

    Args:
        mix: The recipe's section; None without one.
        encoders: The mix's encoders, in order.
        config: Configuration of the tower.
        prepared: Settings of its processor.
    """

    mix: VisionMix | None = None
    encoders: tuple[OutputEncoder, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    prepared: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def checked(self) -> tuple[str, ...]:
        """The tensors of the tower."""
        return (f"model.towers.{self.mix.name}.",) if self.mix else ()

    def write_processors(self, folder: Path) -> None:
        """Writes the processor of the tower, and copies those that encoders bring.

        Raises:
            CompositionError: One of them cannot be copied.
        """
        if self.mix is None:
            return
        from mcompose.modeling import VisionMixProcessor, copy_source_processor  # noqa: PLC0415 - torch, when needed

        home = folder / PROCESSORS / self.mix.name
        VisionMixProcessor(**self.prepared).save_pretrained(home)
        for encoder in self.encoders:
            if encoder.processor_folder is not None:
                with naming_source(encoder.name, "processor"):
                    copy_source_processor(encoder.processor_folder, folder, f"{self.mix.name}/{encoder.name}")

    def checkpoints(self) -> dict[str, Checkpoint]:
        """Returns the checkpoints of the encoders that do not come from a source."""
        return {encoder.name: encoder.checkpoint for encoder in self.encoders if encoder.checkpoint is not None}

    def source_rows(self) -> tuple[SourceRow, ...]:
        """Returns a row for each of these."""
        return tuple(
            SourceRow(
                name=name,
                ref=portable_ref(checkpoint.ref),
                model_type=checkpoint.model_type or "",
                modalities=("image",),
                licence=checkpoint.licence,
                base_model=checkpoint.base_model,
                commit=checkpoint.commit or "",
            )
            for name, checkpoint in self.checkpoints().items()
        )

    def report(self) -> dict[str, Any]:
        """Returns what each encoder makes of a view, and how many tokens views and pictures become."""
        if self.mix is None:
            return {}
        view, most = self.prepared["view_tokens"], self._most_views
        return {
            "vision_mix": {
                "name": self.mix.name,
                "encoders": {
                    encoder.name: {"encoder": encoder.class_name, "vectors": encoder.entry["tokens"]}
                    for encoder in self.encoders
                },
                "tokens_a_view": view,
                "most_views": most,
                "most_tokens": view * most,
            }
        }

    def report_lines(self) -> tuple[tuple[str, str], ...]:
        """Returns one line about encoders, and one about views."""
        if self.mix is None:
            return ()
        facts = self.report()["vision_mix"]
        listed = ", ".join(f"'{e.name}' ({e.class_name}, {e.entry['tokens']} vectors)" for e in self.encoders)
        views = f"{facts['most_views']} views" if facts["most_views"] > 1 else "1 view"
        return (
            (f"image encoders of '{self.mix.name}'", listed),
            ("tokens of an image", f"{facts['tokens_a_view']} a view, at most {facts['most_tokens']:,} in {views}"),
        )

    @property
    def _most_views(self) -> int:
        from mcompose.modeling import largest_grid  # noqa: PLC0415 - torch, for mixes only

        tiles = largest_grid(self.prepared["views"])
        return tiles + (self.prepared["views"]["overview"] != "none") if tiles > 1 else 1


class VisionMixExtension(Extension):
    """SPHINX's mixed visual embeddings."""

    def needs_composed(self, recipe: Recipe) -> bool:
        """Returns whether the recipe mixes image encoders."""
        return recipe.compose.vision_mix is not None

    def plan(self, draft: Draft) -> MixAddition:
        """Opens the encoders of the mix and decides its tensors.

        Args:
            draft: What has been decided so far.

        Raises:
            CompositionError: Encoders that cannot be mixed as the recipe says.
            CheckpointError: A checkpoint cannot be read.
        """
        mix = draft.recipe.compose.vision_mix
        if mix is None or not draft.composed:
            return MixAddition()
        # torch and transformers cost seconds to import, and only recipes with mixed encoders need them.
        from mcompose.compose.vision_mix.encoder import open_encoder, open_source_tower  # noqa: PLC0415

        _check_names(mix, [*draft.sources.towers, *(source.name for source in draft.sources.sources)])
        encoders = tuple(
            open_encoder(name, spec, mix, draft.loaded, weights=draft.weights)
            if spec.source is None
            else open_source_tower(name, draft.sources.get(spec.source), mix)
            for name, spec in mix.encoders.items()
        )
        return _put_together(mix, encoders, width=draft.table.entry.shape[1], seed=draft.recipe.merge.seed)


def _check_names(mix: VisionMix, taken: Sequence[str]) -> None:
    for name in (mix.name, *mix.encoders):
        if name in TORCH_WORDS:
            raise CompositionError(
                f"'{name}' of 'compose.vision_mix' cannot be called so: torch uses the word itself.",
                hint="Give it another name.",
            )
    for name, spec in mix.encoders.items():
        if spec.source is None and name in taken:
            raise CompositionError(
                f"The encoder '{name}' of 'compose.vision_mix' has the name of a source.", hint="Give it another name."
            )


def _put_together(mix: VisionMix, encoders: tuple[OutputEncoder, ...], *, width: int, seed: int) -> MixAddition:
    from mcompose.modeling import VisionMixConfig, view_tokens  # noqa: PLC0415 - as above

    by_name = {encoder.name: encoder for encoder in encoders}
    streams = [_stream(index, stream, by_name) for index, stream in enumerate(mix.all_streams)]
    stated = mix.views.model_dump(exclude={"size", "max_tiles", "frames"})
    size = mix.views.size or next(encoder.size or 224 for encoder in encoders)
    views = {**stated, "size": size, "max_tiles": mix.views.max_tiles or 6}
    config = VisionMixConfig(
        text_width=width,
        encoders={encoder.name: dict(encoder.entry) for encoder in encoders},
        streams=streams,
        views=views,
        marks=mix.marks,
    )
    plain = {"text_width": width, "encoders": config.encoders, "streams": config.streams, "views": config.views}
    plain |= {"marks": mix.marks, "model_type": config.model_type}
    colour = next((list(encoder.colour) for encoder in encoders if encoder.colour), list(_GREY))
    prepared = {
        "views": {**views, "colour": colour},
        "encoders": {encoder.name: dict(encoder.prepared) for encoder in encoders},
        "view_tokens": view_tokens(config),
        "frames": mix.views.frames,
    }
    jobs = [job for encoder in encoders for job in encoder.jobs]
    return MixAddition(
        jobs=(*jobs, *_new_jobs(mix, config, seed=seed)),
        dropped=tuple(row for encoder in encoders for row in encoder.dropped),
        towers=(OutputTower(mix.name, None, "", mix.modalities, built=plain),),
        mix=mix,
        encoders=encoders,
        config=plain,
        prepared=prepared,
    )


def _stream(index: int, stream: Stream, encoders: Mapping[str, OutputEncoder]) -> dict[str, Any]:
    """Returns a stream's entry in the configuration, its grid filled in."""
    members = [encoders[name] for name in stream.of]
    if "source" in members[0].entry:
        return {"of": list(stream.of), "grid": None, "projector": None}
    grid = stream.grid
    if len(members) > 1 or grid is not None:
        for member in members:
            if member.entry["grid"] is None:
                raise CompositionError(
                    f"Encoder '{member.name}' ({member.class_name}) makes {member.entry['tokens']} vectors without rows"
                    f" and columns, and stream {index + 1} of 'compose.vision_mix' puts it on a grid.",
                    hint=f"Give it a stream of its own: '{{of: [{member.name}]}}'.",
                )
        grid = grid or max(side for member in members for side in member.entry["grid"])
    projector = stream.projector.settings if stream.projector else {"kind": "linear_norm"}
    return {"of": list(stream.of), "grid": grid, "projector": projector}


def _new_jobs(mix: VisionMix, config: Any, *, seed: int) -> list[TensorJob]:
    """Returns the tensors that no checkpoint has: projectors, and the vectors around views and for empty tiles."""
    import torch  # noqa: PLC0415 - as above

    from mcompose.modeling import VisionMixModel  # noqa: PLC0415

    with torch.device("meta"):
        held = VisionMixModel._from_config(config).state_dict()
    head, part = f"model.towers.{mix.name}.", qualified(PROJECTOR, mix.name)
    jobs = []
    for name, tensor in held.items():
        if name.startswith("encoders."):
            continue
        shape = tuple(tensor.shape)
        jobs.append(new_job(head + name, shape, part, seed=seed, start=_STARTS.get(name) or start_of(name, shape)))
    return jobs
