"""What each native family does between its towers and its language model, as data.

A tower's own code (encoder, projector, packing of tiles) is used as it is. What remains are the things that a native
model does in the forward of its *base* class, which a composition has to do in its place: how positions count over a
medium (M-RoPE), which tokens see each other (bidirectional images, prefixes), features that enter later layers
(deepstack), and where the features are found. A family that is not listed needs none of these: its features are
scattered over the placeholders and the language model does the rest.

All that the network, its processor and what is measured of them know about one family stands here. What the *names* of
its tensors need (which part a key belongs to, wrappers, parts that no answer needs) stands in ``anatomy/data`` and is
read without torch; both say which families cannot be composed, since this file must be able to without mcompose.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = [
    "EXPERT_MODALITIES",
    "EXPERT_TYPE",
    "FLAT_IMAGE_PROCESSORS",
    "MODALITIES",
    "PLACEHOLDERS",
    "PROCESSOR_ARGUMENTS",
    "PROCESSOR_PARTS",
    "TYPE_IDS",
    "VISION_MIX_TYPE",
    "Chunks",
    "Family",
    "Mrope",
    "TextFamily",
    "family_of",
    "refusal",
    "text_family_of",
]

# transformers' own numbering of mm_token_type_ids (0 is text), continued; "expert" is the block of a domain expert.
TYPE_IDS = {"image": 1, "video": 2, "audio": 3, "points": 4, "expert": 5}
EXPERT_TYPE = TYPE_IDS["expert"]
# In the order of their numbers, which is also the order of their placeholders in a tokenizer and of groups in a model.
MODALITIES = tuple(name for name in TYPE_IDS if name != "expert")
# Modalities beside whose items domain experts can stand.
EXPERT_MODALITIES = ("image", "audio")
VISION_MIX_TYPE = "mcompose_vision_mix"
"""Model type of a mix of image encoders."""
# What stands for one item in the text that the composed processor takes.
PLACEHOLDERS = {modality: f"<{modality}>" for modality in MODALITIES}
# What processors call a modality among their arguments, and their own part that serves it.
PROCESSOR_ARGUMENTS = {"image": "images", "video": "videos", "audio": "audio", "points": "points"}
PROCESSOR_PARTS = {
    "image": ("image_processor",),
    "video": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
}
"""Modality -> attributes of a native processor that may hold the part for it."""
FLAT_IMAGE_PROCESSORS = ("GotOcr2Processor",)
"""Native processors that take images in one list, one for each text, and not a list per text."""


@dataclass(frozen=True)
class Mrope:
    """How one family counts positions over an image or a video.

    Args:
        advance: "side": the text after an item goes on at start + max(height, width); "last": after the largest
            position.
        frames_apart: Whether each frame of a video is an item of its own (text with the time stands between frames).
        seconds: Name of the processor output with the seconds between two frames of each video, or None.
        rate: Name of the setting with positions per second, looked up in the source's configuration and its vision
            part.
        image_rate: Whether the temporal position of images is scaled by ``rate`` too.
        default_seconds: Seconds between frames when the processor gave none.
    """

    advance: str = "side"
    frames_apart: bool = False
    seconds: str | None = None
    rate: str | None = None
    image_rate: bool = False
    default_seconds: float = 1.0


@dataclass(frozen=True)
class Chunks:
    """How a family's sounds become tokens, where its own processor does not say so in the text.

    Args:
        frames: Frames of its feature extractor in one chunk.
        frames_per_token: Frames that become one token.
    """

    frames: int
    frames_per_token: int


@dataclass(frozen=True)
class TextFamily:
    """What one type of language model needs from a composition.

    Args:
        mrope: Whether it takes positions in several dimensions, (3 or 4, batch, length).
        multiplied_by: Name of the setting that its causal class multiplies logits by, or None.
        divided_by: Name of the setting that its causal class divides logits by, or None.
        capped: Whether its causal class caps logits at ``final_logit_softcapping``.
    """

    mrope: bool = False
    multiplied_by: str | None = None
    divided_by: str | None = None
    capped: bool = False


@dataclass(frozen=True)
class Family:
    """What one model type needs from a composition.

    Args:
        mrope: Its way to count positions, None for plain 1-D positions.
        attention: "causal"; "image_blocks": tokens of one image see each other; "prefix": the whole prompt does.
        first_position: Position of the first token (PaliGemma counts from 1).
        deepstack: Whether its features also enter the first layers of the language model.
        head: "plain": the native multimodal class applies no scaling to logits, whatever the language model's own
            causal class does; "text": it applies that of the causal class.
        features: modality -> name of the function in ``towers/features.py`` that stands in for a missing
            ``get_*_features``.
        output: modality -> field of the native output that holds the features, "pooler_output" unless named.
        inputs: modality -> processor outputs that the native forward takes beside the arguments of its feature
            function; the seconds of ``mrope`` are taken without being named here.
        old_names: Native name of a main input -> what the family's processor still calls it.
        image_path: modalities that the native class sends through its image features.
        chunks: How its sounds become tokens, None where its processor says so in the text.
        around: modality -> the two tokens that the family's chat template puts around an item.
        needs_text: Language model types that its features depend on; empty for any.
        media_token: The token that features replace, where the processor does not name it itself.
        whole_tile: Which of an image's tiles is the whole image, "first" or "last".
        hidden_states: Whether its encoder gives hidden states at its end, which a router can read.
        structure: Names of configuration fields that list ids of tokens which the family fills with learned features.
        refused: Why the family cannot be composed.
    """

    mrope: Mrope | None = None
    attention: str = "causal"
    first_position: int = 0
    deepstack: bool = False
    head: str = "plain"
    features: dict[str, str] = field(default_factory=dict)
    output: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    old_names: dict[str, str] = field(default_factory=dict)
    image_path: tuple[str, ...] = ()
    chunks: Chunks | None = None
    around: dict[str, tuple[str, str]] = field(default_factory=dict)
    needs_text: tuple[str, ...] = ()
    media_token: str | None = None
    whole_tile: str = "last"
    hidden_states: bool = True
    structure: str | None = None
    refused: str | None = None


_PLAIN = Family()
_VISION: tuple[str, str] = ("<|vision_start|>", "<|vision_end|>")
_AUDIO: tuple[str, str] = ("<|audio_bos|>", "<|audio_eos|>")
_QWEN_VISION: dict[str, tuple[str, str]] = {"image": _VISION, "video": _VISION}
_FEATURES_MASK: dict[str, tuple[str, ...]] = {"audio": ("input_features_mask",)}
_CROSS = "its language model has cross-attention layers of its own, so no tower can be lifted out."
_ENC_DEC = "it is an encoder-decoder model; only decoder language models are composed."

_FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(mrope=Mrope(), around=_QWEN_VISION),
    "qwen2_5_vl": Family(mrope=Mrope(seconds="second_per_grid_ts", rate="tokens_per_second"), around=_QWEN_VISION),
    "qwen3_vl": Family(
        mrope=Mrope(frames_apart=True), deepstack=True, needs_text=("qwen3_vl_text",), around={"image": _VISION}
    ),
    "qwen2_5_omni_thinker": Family(
        mrope=Mrope(
            advance="last",
            seconds="video_second_per_grid",
            rate="position_id_per_seconds",
            image_rate=True,
        ),
        output={"audio": "last_hidden_state"},
        around={**_QWEN_VISION, "audio": _AUDIO},
    ),
    "qwen2_audio": Family(features={"audio": "qwen2_audio"}, around={"audio": _AUDIO}),
    "qwen3_omni_moe_thinker": Family(inputs={"video": ("video_second_per_grid",)}),
    "granite_speech": Family(features={"audio": "granite_speech"}, inputs=_FEATURES_MASK),
    "granite_speech_plus": Family(inputs=_FEATURES_MASK),
    # Its own processor expands sounds only inside chat templates of mistral-common; the features are Whisper's, in
    # chunks of 30 s that become a fixed number of tokens.
    "voxtral": Family(chunks=Chunks(frames=3000, frames_per_token=8)),
    "video_llama_3": Family(features={"video": "video_llama_3"}, inputs={"video": ("video_compression_mask",)}),
    "video_llava": Family(old_names={"pixel_values": "pixel_values_images"}),
    "paligemma": Family(attention="prefix", first_position=1, head="text"),
    "gemma3": Family(attention="image_blocks"),
    "granite4_vision": Family(head="text"),
    "granite_docling": Family(head="text"),
    "hyperclovax_vision_v2": Family(head="text"),
    "llava_next": Family(whole_tile="first"),
    "llava_next_video": Family(whole_tile="first"),
    "llava_onevision": Family(whole_tile="first"),
    VISION_MIX_TYPE: Family(image_path=("video",), head="text"),
    "internvl": Family(image_path=("video",)),
    "smolvlm": Family(image_path=("video",)),
    "ovis2": Family(
        features={"image": "ovis2"},
        media_token="<IMG_ATOM>",  # noqa: S106 - a text token
        structure="visual_indicator_token_ids",
        whole_tile="first",
        hidden_states=False,
    ),
    "phi4_multimodal": Family(
        refused="it switches adapters of its language model by modality, and one shared language model cannot."
    ),
    "mllama": Family(refused=_CROSS),
    "idefics": Family(refused=_CROSS),
    "evolla": Family(refused=_CROSS),
    "fuyu": Family(refused="it has no tower: image patches go through one linear layer of the language model."),
    "florence2": Family(refused=_ENC_DEC),
    "udop": Family(refused=_ENC_DEC),
    "t5gemma2": Family(refused=_ENC_DEC),
    "git": Family(refused="its language model is a bidirectional text encoder of its own."),
    "blip": Family(refused=_ENC_DEC),
    "gemma3n": Family(refused="its language model takes per-layer inputs that only its own embeddings make."),
    "gemma4": Family(refused="its language model takes per-layer inputs that only its own embeddings make."),
    "molmo2": Family(refused="its checkpoints are converted on loading, so a tower is not a set of copied tensors."),
    "qwen2_5_omni": Family(refused="it is a wrapper; compose its thinker (model type qwen2_5_omni_thinker)."),
    "qwen3_omni_moe": Family(refused="it is a wrapper; its thinker is not supported yet."),
}


_PLAIN_TEXT = TextFamily()
_MROPE_TEXT = TextFamily(mrope=True)
_TEXT_FAMILIES: dict[str, TextFamily] = {
    "qwen3_5_text": _MROPE_TEXT,
    "qwen3_5_moe_text": _MROPE_TEXT,
    "qwen3_vl_moe_text": _MROPE_TEXT,
    "qwen3_omni_moe_text": _MROPE_TEXT,
    "glm4v_text": _MROPE_TEXT,
    "glm4v_moe_text": _MROPE_TEXT,
    "glm_ocr_text": _MROPE_TEXT,
    "glmga_text": _MROPE_TEXT,
    "ernie4_5_vl_moe_text": _MROPE_TEXT,
    "paddleocr_vl_text": _MROPE_TEXT,
    "cosmos3_edge_text": _MROPE_TEXT,
    "qwen2_vl_text": _MROPE_TEXT,
    "qwen2_5_vl_text": _MROPE_TEXT,
    "qwen3_vl_text": _MROPE_TEXT,
    "qwen2_5_omni_text": _MROPE_TEXT,
    "cohere": TextFamily(multiplied_by="logit_scale"),
    "cohere2": TextFamily(multiplied_by="logit_scale"),
    "cohere2_moe": TextFamily(multiplied_by="logit_scale"),
    "nanochat": TextFamily(capped=True),
    "vaultgemma": TextFamily(capped=True),
    "granite": TextFamily(divided_by="logits_scaling"),
    "granitemoe": TextFamily(divided_by="logits_scaling"),
    "granitemoehybrid": TextFamily(divided_by="logits_scaling"),
    "granitemoeshared": TextFamily(divided_by="logits_scaling"),
    "hyperclovax": TextFamily(multiplied_by="logits_scaling"),
    "gemma2": TextFamily(capped=True),
    "gemma3_text": TextFamily(capped=True),
}


def family_of(model_type: str) -> Family:
    """Returns what a model type needs; plain features over placeholders when it is not listed."""
    return _FAMILIES.get(model_type, _PLAIN)


def text_family_of(model_type: str) -> TextFamily:
    """Returns what a type of language model needs; nothing when it is not listed."""
    return _TEXT_FAMILIES.get(model_type, _PLAIN_TEXT)


def refusal(model_type: str) -> str | None:
    """Returns why a model type cannot be composed, or None."""
    return family_of(model_type).refused
