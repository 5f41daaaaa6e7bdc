"""Domain experts and the router in a recipe: frozen encoders of other models beside the general encoder.

An expert is the encoder of any Hugging Face checkpoint, with its own projector and a domain; for each image or sound
the router chooses one of them or none (Chimera, Peng et al. 2024, arXiv:2412.05983). All defaults are the paper's::

    compose:
      experts:
        charts:
          encoder: hub:google/pix2struct-base     # of an encoder-decoder only the encoder is used
          domain: chart
          padding: drop                           # the encoder's own padding never reaches the language model
        math: {encoder: local:math-clip, projector: {kind: pixel_shuffle, factor: 2}}
        sounds: {encoder: hub:openai/whisper-base, modality: audio}
        tables: {encoder: local:table-model, onnx: {file: model.onnx, output: backbone}}   # run by onnxruntime
      router: {feature: class, rule: {kind: threshold, threshold: 0.5}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from mcompose.modalities import EXPERT_MODALITIES
from mcompose.recipe.field_errors import FieldError
from mcompose.recipe.fields import Count, Number, Reference, SourceName, Spec, one_of

__all__ = ["Expert", "ExpertName", "Onnx", "Projector", "Router", "Rule"]

_KINDS = ("mlp", "linear", "pixel_shuffle", "resampler")
_RULES = ("argmax", "threshold", "top_k")
_CLASS_TOKENS = ("drop", "keep")
_RESERVED = ("none", "auto")
_OWN_KEYS = {"depth": ("mlp", "pixel_shuffle"), "factor": ("pixel_shuffle",), "queries": ("resampler",)}


def _is_reference(raw: Any) -> bool:
    return isinstance(raw, str) and raw.startswith(("hub:", "local:"))


def _expert_name(raw: Any) -> Any:
    if raw in _RESERVED:
        hint = "Choose another name: 'none' and 'auto' are reserved for routing."
        raise FieldError("'{path}' cannot be the name of an expert.", hint=hint)
    return raw


ExpertName: TypeAlias = Annotated[SourceName, BeforeValidator(_expert_name)]


def _class_token(raw: Any) -> Any:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if raw < 0:
            raise FieldError("'{path}' must be zero or more.", hint="It is the number of leading vectors to leave out.")
        return raw
    one_of("rule for class tokens", _CLASS_TOKENS).func(raw)  # pyright: ignore[reportCallIssue]
    return raw


ClassToken: TypeAlias = Annotated[int | str, BeforeValidator(_class_token)]


class Projector(Spec):
    """Projector from an expert's features to the language model's embeddings.

    Written as a word it is the kind, as a reference the checkpoint of a trained projector.

    Attributes:
        kind: ``mlp`` (LayerNorm, Linear, GELU, Linear), ``linear``, ``pixel_shuffle`` (neighbours folded, then as
            ``mlp``; for image encoders with one fixed grid) or ``resampler`` (learned queries).
        depth: Number of linear layers of an ``mlp`` or a ``pixel_shuffle``; default: 2.
        factor: Side of the block of neighbours that become one vector; default: 2.
        queries: Number of vectors that a ``resampler`` makes from an item; default: 64.
        heads: Attention heads of a ``resampler``, a divisor of the language model's width; default: 8.
        model: Checkpoint of a trained projector: a composed checkpoint with this expert, or a folder with the
            projector's tensors only. Default: a new projector.
    """

    kind: Annotated[Literal["mlp", "linear", "pixel_shuffle", "resampler"], one_of("kind of projector", _KINDS)] = "mlp"
    depth: Annotated[Count, Field(ge=1)] | None = None
    factor: Annotated[Count, Field(ge=2)] | None = None
    queries: Annotated[Count, Field(ge=1)] | None = None
    heads: Annotated[Count, Field(ge=1)] | None = None
    model: Reference | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, raw: Any) -> Any:
        if _is_reference(raw):
            return {"model": raw}
        return {"kind": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _check(self) -> Projector:
        for key, kinds in (*_OWN_KEYS.items(), ("heads", ("resampler",))):
            if getattr(self, key) is not None and self.kind not in kinds:
                message = f"'{{path}}' has no effect for a projector of kind '{self.kind}'."
                raise FieldError(message, at=(key,), hint=f"It belongs to 'kind: {kinds[0]}'.")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as the network's config holds them, with defaults."""
        all_defaults = {"depth": 2, "factor": 2, "queries": 64, "heads": 8}
        defaults = {key: all_defaults[key] for key, kinds in _OWN_KEYS.items() if self.kind in kinds}
        defaults |= {"heads": 8} if self.kind == "resampler" else {}
        written = {key: getattr(self, key) for key in defaults if getattr(self, key) is not None}
        return {"kind": self.kind, **defaults, **written}


def _graph_file(raw: Any) -> Any:
    parts = raw.split("/") if isinstance(raw, str) else [""]
    if any(part in ("", ".", "..") for part in parts) or "\\" in raw or raw[1:2] == ":":
        hint = "Write the path inside the encoder's folder: 'model.onnx', 'onnx/model.onnx'."
        raise FieldError("'{path}' must be a file in the encoder's folder.", hint=hint)
    return raw


class Onnx(Spec):
    """An ONNX graph as encoder, run by onnxruntime (extra ``onnx``).

    Written as a word it is the file. The output has the shape (n, tokens, width), or (n, channels, rows, columns),
    which is read row by row. What follows the output in the graph, such as a detector's head, is not computed.

    Attributes:
        file: File in the encoder's folder; the folder then needs neither other weights nor ``config.json``. Files of
            external data are found from it.
        output: Name of the value to read: an output of the graph, or any value inside it. Default: the output
            ``last_hidden_state``, else the only float output with three or four dimensions.
        input: Name of the input for images or sounds. Default: ``pixel_values``, ``input_features`` or
            ``input_values``, else the only input.
    """

    file: Annotated[str, BeforeValidator(_graph_file)]
    output: Annotated[str, Field(min_length=1)] | None = None
    input: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, raw: Any) -> Any:
        return {"file": raw} if isinstance(raw, str) else raw


class Expert(Spec):
    """A frozen encoder that sees some items in addition to the general encoder.

    Attributes:
        encoder: Checkpoint of the encoder; of an encoder-decoder or a two-tower model the encoder of the modality is
            used.
        onnx: ONNX file in the encoder's folder, when the encoder is an ONNX graph; see ``Onnx``.
        processor: Checkpoint whose processor prepares the inputs; default: the encoder's.
        domain: Domain of the expert, as data sets name it; default: the expert's name.
        modality: Modality of the items that the expert may see.
        layer: Index of the hidden state to read; -1 is the last. For an ONNX graph use ``output`` instead.
        class_token: ``drop`` leaves out the vectors before the patches (class token, registers); ``keep`` keeps them; a
            number leaves out that many vectors. The vectors of an ONNX graph are not known, so there it must be
            ``keep`` or a number.
        padding: What happens to vectors that the encoder's mask marks as padding: ``keep`` them as the paper's code
            does, ``mask`` them in attention, or ``drop`` them.
        projector: Projector to the language model.
        store: ``inside``: the tensors are copied into the checkpoint. ``reference``: only id, commit and digests are
            stored.
    """

    encoder: Reference
    onnx: Onnx | None = None
    processor: Reference | None = None
    domain: Annotated[str, Field(min_length=1)] | None = None
    modality: Annotated[str, one_of("modality with experts", EXPERT_MODALITIES)] = "image"
    layer: Count = -1
    class_token: ClassToken = "drop"  # noqa: S105 - a word of recipes
    padding: Annotated[Literal["keep", "mask", "drop"], one_of("way with padding", ("keep", "mask", "drop"))] = "keep"
    projector: Projector = Field(default_factory=Projector.model_construct)
    store: Annotated[Literal["inside", "reference"], one_of("way to store", ("inside", "reference"))] = "inside"

    @model_validator(mode="before")
    @classmethod
    def _keep_of_a_graph(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("onnx") is not None:
            return {"class_token": "keep", **raw}
        return raw

    @model_validator(mode="after")
    def _check(self) -> Expert:
        if self.onnx is not None and self.layer != -1:
            hint = "Name another value of the graph: 'onnx: {file: ..., output: ...}'."
            raise FieldError("'{path}' cannot be set for an ONNX graph.", at=("layer",), hint=hint)
        if self.onnx is not None and self.class_token == "drop":  # noqa: S105 - a word of recipes
            hint = "Write how many leading vectors to leave out: 'class_token: 1'."
            raise FieldError("'{path}: drop' cannot be set for an ONNX graph.", at=("class_token",), hint=hint)
        if self.onnx is not None and self.padding != "keep":
            hint = "Leave it out: an ONNX graph does not mark which vectors are padding."
            raise FieldError("'{path}' cannot be set for an ONNX graph.", at=("padding",), hint=hint)
        if self.projector.kind == "pixel_shuffle" and self.padding != "keep":
            hint = "Leave it out: pixel_shuffle folds neighbours on a complete grid."
            raise FieldError("'{path}' cannot be combined with 'pixel_shuffle'.", at=("padding",), hint=hint)
        return self


class Rule(Spec):
    """How the router's scores become a choice.

    Written as a word, it is the kind.

    Attributes:
        kind: ``argmax``: the most probable class. ``threshold``: the most probable expert if its probability reaches
            the threshold, whatever the probability of ``none``; otherwise none. ``top_k``: the k most probable experts
            that are more probable than ``none``.
        threshold: Probability; default: 0.5.
        k: Most experts of one item; default: 2.
    """

    kind: Annotated[Literal["argmax", "threshold", "top_k"], one_of("rule", _RULES)] = "argmax"
    threshold: Annotated[Number, Field(gt=0, lt=1)] | None = None
    k: Annotated[Count, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, raw: Any) -> Any:
        return {"kind": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _check(self) -> Rule:
        for key, kind in (("threshold", "threshold"), ("k", "top_k")):
            if getattr(self, key) is not None and self.kind != kind:
                hint = f"It belongs to 'kind: {kind}'."
                raise FieldError(f"'{{path}}' has no effect for the rule '{self.kind}'.", at=(key,), hint=hint)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as the network's config holds them, with defaults."""
        if self.kind == "threshold":
            return {"kind": self.kind, "threshold": 0.5 if self.threshold is None else float(self.threshold)}
        if self.kind == "top_k":
            return {"kind": self.kind, "k": 2 if self.k is None else self.k}
        return {"kind": self.kind}


class Router(Spec):
    """Router that chooses an expert: for each modality one linear layer on the general encoder's pooled feature.

    Written as a reference, it is the checkpoint of a trained router; ``none`` leaves the choice to the caller.

    Attributes:
        made: Whether the network has a router.
        feature: ``class``: the general encoder's class token; ``mean``: the mean of its vectors. Default: ``class``
            where the encoder has a class token.
        tile: Tile of a cut image that is read: ``first``, ``last`` or ``mean`` of all. Default: the tile that shows the
            whole image, as the general encoder's family orders its tiles.
        rule: How its scores become a choice.
        model: Composed checkpoint with a trained router; default: a new router.
    """

    made: bool = True
    feature: Annotated[Literal["class", "mean"], one_of("feature", ("class", "mean"))] | None = None
    tile: Annotated[Literal["first", "last", "mean"], one_of("tile", ("first", "last", "mean"))] | None = None
    rule: Rule = Field(default_factory=Rule.model_construct)
    model: Reference | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, raw: Any) -> Any:
        if _is_reference(raw):
            return {"model": raw}
        if raw == "none":
            return {"made": False}
        if raw is not None and not isinstance(raw, Mapping | Router):
            raise FieldError("'{path}' must be a mapping, a checkpoint, or 'none'.")
        return raw
