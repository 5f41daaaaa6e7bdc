"""What a recipe says about domain experts and the router: frozen encoders of other models beside the general one.

An expert is the encoder out of any Hugging Face checkpoint, a projector of its own, and the domain that it is good at;
the router chooses, per image or sound, one of them or none (Chimera, Peng et al. 2024, arXiv:2412.05983). All defaults
are the paper's::

    compose:
      experts:
        charts:
          encoder: hub:google/pix2struct-base     # an encoder-decoder gives its encoder only
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
        raise FieldError("'{path}' cannot be its name.", hint="'none' and 'auto' say how items are routed.")
    return raw


ExpertName: TypeAlias = Annotated[SourceName, BeforeValidator(_expert_name)]


def _class_token(raw: Any) -> Any:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if raw < 0:
            raise FieldError("'{path}' cannot be less than zero.", hint="It is a number of leading vectors.")
        return raw
    one_of("rule for class tokens", _CLASS_TOKENS).func(raw)  # pyright: ignore[reportCallIssue]
    return raw


ClassToken: TypeAlias = Annotated[int | str, BeforeValidator(_class_token)]


class Projector(Spec):
    """What leads from an expert's features to the language model.

    Written as a word it is the kind, as a reference the checkpoint of a trained one.

    Attributes:
        kind: ``mlp`` (LayerNorm, Linear, GELU, Linear), ``linear``, ``pixel_shuffle`` (neighbours folded, then as
            ``mlp``; for encoders of images with one grid for all) or ``resampler`` (learned queries).
        depth: Linears of an ``mlp`` or a ``pixel_shuffle``; default: 2.
        factor: Side of the block of neighbours that become one vector; default: 2.
        queries: Vectors that a ``resampler`` makes of an item; default: 64.
        heads: Of its attention, a divisor of the language model's width; default: 8.
        model: Checkpoint of a trained one, a composed checkpoint with this expert or a folder with its tensors alone.
            Default: a new one.
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
                message = f"'{{path}}' does nothing for a projector of kind '{self.kind}'."
                raise FieldError(message, at=(key,), hint=f"It belongs to 'kind: {kinds[0]}'.")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """As the network's config has it, defaults filled in."""
        defaults = {"depth": 2, "factor": 2, "queries": 64, "heads": 8}
        own = {key: defaults[key] for key, kinds in _OWN_KEYS.items() if self.kind in kinds}
        own |= {"heads": 8} if self.kind == "resampler" else {}
        given = {key: getattr(self, key) for key in own if getattr(self, key) is not None}
        return {"kind": self.kind, **own, **given}


def _graph_file(raw: Any) -> Any:
    parts = raw.split("/") if isinstance(raw, str) else [""]
    if any(part in ("", ".", "..") for part in parts) or "\\" in raw or raw[1:2] == ":":
        hint = "Write it as it is called inside the encoder's folder: 'model.onnx', 'onnx/model.onnx'."
        raise FieldError("'{path}' must be a file of the encoder's folder.", hint=hint)
    return raw


class Onnx(Spec):
    """An encoder that is an ONNX graph, run by onnxruntime (extra ``onnx``).

    Written as a word it is the file. The output is vectors (n, tokens, width) or a map (n, channels, rows, columns),
    whose places are read row by row. What comes behind it in the graph, a detector's head, is not computed.

    Attributes:
        file: In the encoder's folder, which needs no other weights and no ``config.json`` then; files of external data
            are found from it.
        output: The value that is read: an output of the graph, or any value inside it. Default: the output called
            ``last_hidden_state``, else the only one of floats with three or four dimensions.
        input: What takes the pictures or sounds. Default: ``pixel_values``, ``input_features`` or ``input_values``,
            else the only input.
    """

    file: Annotated[str, BeforeValidator(_graph_file)]
    output: Annotated[str, Field(min_length=1)] | None = None
    input: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, raw: Any) -> Any:
        return {"file": raw} if isinstance(raw, str) else raw


class Expert(Spec):
    """A frozen encoder that sees some items beside the general one.

    Attributes:
        encoder: Its checkpoint; of an encoder-decoder or a two-tower model the encoder of the modality is taken.
        onnx: File in the encoder's folder, when it is an ONNX graph; see ``Onnx``.
        processor: Checkpoint whose processor prepares its inputs; default: the encoder's.
        domain: What it is the expert of, as data name it; default: the expert's own name.
        modality: Beside whose items it stands.
        layer: Hidden state that is read; -1 is the last. A graph has none to choose from: its ``output`` says it.
        class_token: ``drop`` leaves out what the encoder puts before its patches (class token, registers); ``keep``
            keeps it; a number leaves out that many vectors. A graph does not tell what its vectors are, so there it is
            ``keep``, or the number.
        padding: Rows that the encoder's own mask calls padding: ``keep`` them as the paper's code does, ``mask`` them
            from attention, or ``drop`` them.
        projector: What leads to the language model.
        store: ``inside``: its tensors are copied into the checkpoint. ``reference``: only its id, commit and digests.
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
            raise FieldError("'{path}' goes with no ONNX graph.", at=("layer",), hint=hint)
        if self.onnx is not None and self.class_token == "drop":  # noqa: S105 - a word of recipes
            hint = "Write how many leading vectors to leave out: 'class_token: 1'."
            raise FieldError("'{path}: drop' goes with no ONNX graph.", at=("class_token",), hint=hint)
        if self.onnx is not None and self.padding != "keep":
            hint = "Leave it out: which vectors are padding, a graph does not say."
            raise FieldError("'{path}' goes with no ONNX graph.", at=("padding",), hint=hint)
        if self.projector.kind == "pixel_shuffle" and self.padding != "keep":
            hint = "Leave it out: neighbours are folded on a whole grid."
            raise FieldError("'{path}' goes with no pixel_shuffle.", at=("padding",), hint=hint)
        return self


class Rule(Spec):
    """How the router's scores become a choice.

    Written as a word, it is the kind.

    Attributes:
        kind: ``argmax``: the likeliest class. ``threshold``: the likeliest expert if its probability reaches the
            threshold, however likely none is; else none. ``top_k``: the k likeliest, as far as they are likelier than
            none.
        threshold: Probability; 0.5 unless given.
        k: Most experts of one item; 2 unless given.
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
                raise FieldError(f"'{{path}}' does nothing for the rule '{self.kind}'.", at=(key,), hint=hint)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """As the network's config has it, defaults filled in."""
        if self.kind == "threshold":
            return {"kind": self.kind, "threshold": 0.5 if self.threshold is None else float(self.threshold)}
        if self.kind == "top_k":
            return {"kind": self.kind, "k": 2 if self.k is None else self.k}
        return {"kind": self.kind}


class Router(Spec):
    """What sends an item to an expert: a linear layer on the general encoder's pooled feature; one a modality.

    Written as a reference, it is the checkpoint of a trained one; ``none`` leaves the choice to the caller.

    Attributes:
        made: Whether there is one.
        feature: ``class``: the general encoder's class token; ``mean``: the mean of its vectors. Default: ``class``
            where the encoder has one.
        tile: Which tile of a cut image is read: ``first``, ``last`` or ``mean``. Default: the one that shows the whole
            image, as the general encoder's family orders its tiles.
        rule: How its scores become a choice.
        model: Composed checkpoint of a trained one; default: a new one.
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
