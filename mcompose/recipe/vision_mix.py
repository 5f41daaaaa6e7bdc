"""Mixed visual embeddings in a recipe: several image encoders on several views of a picture (SPHINX).

Paper: Lin et al. 2023, arXiv:2311.07575; tiles by aspect ratio and the vector of an empty tile from Liu et al. 2024,
arXiv:2402.05935. What the paper's code does is the default::

    compose:
      vision_mix:
        name: eyes
        encoders:
          clip: {encoder: hub:openai/clip-vit-large-patch14, class_token: keep}
          dino: {encoder: hub:facebook/dinov2-giant, class_token: keep}
          conv: {encoder: hub:facebook/convnext-base-224, size: 256}
        streams:
          - {of: [clip, conv, dino], grid: 16, projector: linear_norm}
        views: {size: 224, tiles: 2x2}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Count, Reference, SourceName, Spec, one_of

if TYPE_CHECKING:
    from mcompose.recipe.schema import Recipe

__all__ = ["MixedEncoder", "Stream", "StreamProjector", "Views", "VisionMix", "check_vision_mix", "read_vision_mix"]

_KINDS = ("linear_norm", "linear", "mlp")
_MOST_TILES = 64
_COPIES = ("linear", "naivemc")
"""Methods under which one language model alone stays as it is."""
_Word = Literal["center", "corner"]


def _tiles(raw: Any) -> Any:
    rows, times, columns = str(raw).partition("x")
    counts = [int(word) if word.isascii() and word.isdigit() and len(word) < 3 else 0 for word in (rows, columns)]
    if raw in ("none", "auto") or (times and 0 < counts[0] * counts[1] <= _MOST_TILES):
        return raw if counts != [1, 1] else "none"
    hint = f"Write 'none', 'auto', or rows x columns such as '2x2' (at most {_MOST_TILES} tiles)."
    raise FieldError(f"'{{path}}' cannot be {raw!r}.", hint=hint)


class MixedEncoder(Spec):
    """One encoder of a mix: a checkpoint's, or the image tower of a source.

    Attributes:
        encoder: Checkpoint of the encoder; of an encoder-decoder or a two-tower model the image encoder is used.
        source: Name of a source whose image tower is used, with its projector.
        processor: Checkpoint whose processor prepares the pixels; default: the encoder's.
        part: ``qformer``: of a BLIP-2 checkpoint its Q-Former, behind its image encoder and before its language
            projection. Default: the image encoder.
        size: Side in pixels of what the encoder sees of one view; default: its own.
        layer: Index of the hidden state that is read; -1 is the last.
        class_token: Whether the encoder's class token is kept. Registers never are.
        final_norm: Whether the encoder's closing norm is applied where its class leaves it out of the last hidden
            state (CLIP, ConvNeXt); default: for the last layer.
    """

    encoder: Reference | None = None
    source: str | None = None
    processor: Reference | None = None
    part: Annotated[Literal["qformer"], one_of("part", ("qformer",))] | None = None
    size: Annotated[Count, Field(ge=1)] | None = None
    layer: Count = -1
    class_token: Annotated[Literal["drop", "keep"], one_of("rule for class tokens", ("drop", "keep"))] = "drop"  # noqa: S105
    final_norm: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> MixedEncoder:
        if (self.encoder is None) == (self.source is None):
            raise FieldError(
                "'{path}' must name either an encoder or a source.",
                hint="Write 'encoder: hub:...' for a checkpoint, or 'source: <name>' for the image tower of a source.",
            )
        if self.part is not None and (self.layer != -1 or self.final_norm or self.class_token != "drop"):  # noqa: S105
            key = "layer" if self.layer != -1 else "final_norm" if self.final_norm else "class_token"
            hint = "Leave it out: the hidden states of its queries are read as they are."
            raise FieldError("'{path}' cannot be set for a Q-Former.", at=(key,), hint=hint)
        if self.source is not None:
            for key in ("processor", "part", "size", "layer", "class_token", "final_norm"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    hint = "Leave it out: the tower of a source is used as it is."
                    raise FieldError("'{path}' cannot be set for the tower of a source.", at=(key,), hint=hint)
        return self


class StreamProjector(Spec):
    """Layer from the vectors of a stream to the language model's width.

    Written as a word it is the kind.

    Attributes:
        kind: ``linear_norm`` (Linear, LayerNorm: the paper's), ``linear``, or ``mlp`` (LayerNorm, Linear, GELU,
            Linear).
        depth: Number of linear layers of an ``mlp``; default: 2.
    """

    kind: Annotated[Literal["linear_norm", "linear", "mlp"], one_of("kind of projector", _KINDS)] = "linear_norm"
    depth: Annotated[Count, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, raw: Any) -> Any:
        return {"kind": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _check(self) -> StreamProjector:
        if self.depth is not None and self.kind != "mlp":
            message = f"'{{path}}' has no effect for a projector of kind '{self.kind}'."
            raise FieldError(message, at=("depth",), hint="It belongs to 'kind: mlp'.")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as the network's config holds them, with defaults."""
        return {"kind": self.kind} | ({"depth": self.depth or 2} if self.kind == "mlp" else {})


class Stream(Spec):
    """What the language model reads of one view, behind the streams before it.

    Attributes:
        of: Encoders; the channels of several stand side by side.
        grid: Rows and columns on which they meet; default for several: the largest grid among them. For one encoder
            its vectors stay as they are unless a grid is written.
        projector: Layer to the language model; none for the tower of a source, which has its own.
    """

    of: tuple[str, ...] = Field(min_length=1)
    grid: Annotated[Count, Field(ge=1, le=256)] | None = None
    projector: StreamProjector | None = None


class Views(Spec):
    """How a picture is cut into views.

    Attributes:
        size: Side of a view in pixels, as ``auto`` counts tiles and as the towers of sources and encoders with a
            processor of their own see it; default: the first encoder's own. Other encoders see their own size.
        tiles: ``none``, rows x columns (``2x2``), or ``auto``: by aspect ratio, at most ``max_tiles``.
        max_tiles: Most tiles of ``auto``; default: 6.
        padding: ``square``: filled up to the proportions of the grid with the mean colour of the first encoder.
            ``none``: stretched.
        align: Where the picture lies in the filling: ``center`` or ``corner`` (upper left).
        overview: Where the view of the whole picture stands: ``first``, ``last`` or ``none``.
        skip: Whether one learned vector stands for a tile that is filling alone, on which no encoder then runs.
        frames: Frames of a video that are shown, each like a picture; default: no videos.
    """

    size: Annotated[Count, Field(ge=1)] | None = None
    tiles: Annotated[str, BeforeValidator(_tiles)] = "none"
    max_tiles: Annotated[Count, Field(ge=1, le=_MOST_TILES)] | None = None
    padding: Annotated[Literal["square", "none"], one_of("padding", ("square", "none"))] = "square"
    align: Annotated[_Word, one_of("alignment", ("center", "corner"))] = "center"
    overview: Annotated[Literal["first", "last", "none"], one_of("place", ("first", "last", "none"))] = "first"
    skip: bool = True
    frames: Annotated[Count, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Views:
        if self.max_tiles is not None and self.tiles != "auto":
            raise FieldError("'{path}' belongs to 'tiles: auto'.", at=("max_tiles",), hint="Leave it out.")
        if self.overview == "none" and self.tiles == "none":
            hint = "Write 'overview: first', or a grid of tiles."
            raise FieldError("'{path}: none' leaves no view, since there are no tiles.", at=("overview",), hint=hint)
        if self.padding == "none" and self.align != "center":
            raise FieldError("'{path}' has no effect without padding.", at=("align",), hint="Leave it out.")
        return self


class VisionMix(Spec):
    """Several image encoders as one tower.

    Attributes:
        name: Name of the tower in the output.
        encoders: Name to encoder, in order.
        streams: What the language model reads of one view, in order; may be left out for a single encoder.
        views: How a picture is cut.
        marks: Whether a learned vector stands before and behind every view.
    """

    name: SourceName = "eyes"
    encoders: dict[SourceName, MixedEncoder] = Field(min_length=1)
    streams: tuple[Stream, ...] = ()
    views: Views = Field(default_factory=Views.model_construct)
    marks: bool = True

    @model_validator(mode="after")
    def _check(self) -> VisionMix:
        if not self.streams and len(self.encoders) > 1:
            raise FieldError(
                "'{path}' is missing, and there are several encoders.",
                at=("streams",),
                hint="Write for example 'streams: [{of: [a, b]}]' for channels side by side, or one entry an encoder.",
            )
        for index, stream in enumerate(self.streams):
            self._check_stream(index, stream)
        used = [name for stream in self.all_streams for name in stream.of]
        for name in self.encoders:
            if name not in used:
                raise FieldError("'{path}' is in no stream.", at=("encoders", name), hint="Name it in 'streams'.")
        return self

    def _check_stream(self, index: int, stream: Stream) -> None:
        for number, name in enumerate(stream.of):
            at = ("streams", index, "of", number)
            if name not in self.encoders:
                raise FieldError(f"'{{path}}' is not one of the encoders: '{name}'.", at=at)
            if name in stream.of[:number]:
                raise FieldError(f"'{{path}}' names '{name}' twice.", at=at)
            if self.encoders[name].source is None:
                continue
            if len(stream.of) > 1 or stream.grid is not None:
                raise FieldError(
                    f"'{{path}}': '{name}' is the tower of a source, whose own projector cannot share a stream.",
                    at=at,
                    hint=f"Give it a stream of its own: '{{of: [{name}]}}'.",
                )
            if stream.projector is not None:
                at = ("streams", index, "projector")
                raise FieldError("'{path}': the tower of a source keeps its own.", at=at, hint="Leave it out.")

    @property
    def all_streams(self) -> tuple[Stream, ...]:
        """The streams; of a single encoder without any, one."""
        return self.streams or (Stream(of=tuple(self.encoders)),)

    @property
    def sources(self) -> dict[str, str]:
        """Encoder to the source whose tower it is."""
        return {name: entry.source for name, entry in self.encoders.items() if entry.source is not None}

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the tower serves."""
        return ("image", "video") if self.views.frames else ("image",)


def read_vision_mix(raw: Any) -> Any:
    """Returns None for an empty mapping, which stands for no mix."""
    return None if isinstance(raw, Mapping) and not raw else raw


def check_vision_mix(recipe: Recipe) -> None:
    """Checks a mix of image encoders against the rest of the recipe.

    Args:
        recipe: The recipe.

    Raises:
        FieldError: A rule is broken; the error names the key.
    """
    mix = recipe.compose.vision_mix
    if mix is None:
        if not recipe.sources:
            hint = "Name at least one source, or mixed image encoders in 'compose.vision_mix' beside a base."
            raise FieldError("'{path}' is empty.", at=("sources",), hint=hint)
        return
    at = ("compose", "vision_mix")
    if not recipe.sources and recipe.base is None:
        hint = "Write 'base: hub:...': the language model that reads what the encoders see."
        raise FieldError("'{path}' is missing, and there is no source either.", at=("base",), hint=hint)
    at_method = ("merge", "method")
    if not recipe.sources and recipe.merge.method not in _COPIES:
        hint = f"Write 'method: {_COPIES[0]}': the language model of the base stays as it is."
        raise FieldError("'{path}' has nothing to merge, since there are no sources.", at=at_method, hint=hint)
    if mix.name in (*recipe.source_names, *recipe.compose.experts):
        hint = "Give the mix another name."
        raise FieldError("'{path}' is also the name of a source or an expert.", at=(*at, "name"), hint=hint)
    for name, source in mix.sources.items():
        if source not in recipe.source_names:
            here = (*at, "encoders", name, "source")
            raise FieldError(f"'{{path}}' is not the name of a source: '{source}'.", at=here)
    if recipe.output.format not in {"auto", "composed"}:
        raise FieldError(
            f"'{{path}}: {recipe.output.format}' cannot hold mixed image encoders.",
            at=("output", "format"),
            hint="Write 'composed', or leave out 'compose.vision_mix'.",
        )
