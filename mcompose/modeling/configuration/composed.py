"""Configuration of a composed model: one language model, and the towers of the sources that feed it.

``config.json`` of a composed checkpoint holds:

- ``model_type``: ``"mcompose"``; ``architectures``: ``["ComposedForConditionalGeneration"]``; ``auto_map``:
  ``AUTO_MAP``.
- ``text_config``: the configuration of the (merged) language model, with its own ``model_type``.
- ``sources``: source name -> ``{"model_type", "config", "modalities"}``. ``config`` is the source's whole
  configuration as its own ``to_dict`` gives it (its ``text_config`` describes the language model that it came with,
  whose weights are not here); ``modalities`` is what this source serves in the composition. A modality is served by
  exactly one source.
- ``image_token_id``, ``video_token_id``, ``audio_token_id``, ``points_token_id``: the composition's own placeholder
  ids, one per modality that is served. They may lie beyond the embedding table: no row exists for them and none is
  needed.
- the fields of every extension that the composition has: decoupled parameter groups (``groups/specs.py``), learned
  vectors around items (``prefixes/configuration.py``), experts and routers (``experts/configuration.py``).
- ``tie_word_embeddings``: whether ``lm_head.weight`` is the embedding table (then it is not stored).

``composed_config`` writes all of this from plain values.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from ..families import MODALITIES, family_of, refusal
from ..names import is_plain_name
from .extensions import CONFIG_EXTENSIONS
from .native import native_config, text_config_of

__all__ = ["AUTO_MAP", "ComposedConfig", "composed_config", "stored_source"]


AUTO_MAP = {
    "AutoConfig": "configuration_mcompose.ComposedConfig",
    "AutoModel": "modeling_mcompose.ComposedModel",
    "AutoModelForImageTextToText": "modeling_mcompose.ComposedForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_mcompose.ComposedForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_mcompose.ComposedForConditionalGeneration",
    "AutoProcessor": "processing_mcompose.ComposedProcessor",
}


class ComposedConfig(PreTrainedConfig):
    """Settings of a composed model; builds with no arguments (a small Llama and no source).

    Args:
        text_config: The language model's configuration, or its dictionary with ``model_type``.
        sources: Source name -> ``{"model_type": str, "config": dict, "modalities": [str, ...]}``.
        image_token_id: Placeholder id of images; None when no source serves them.
        video_token_id: Placeholder id of videos.
        audio_token_id: Placeholder id of sounds.
        points_token_id: Placeholder id of point clouds.
        tie_word_embeddings: Whether the head is the embedding table; None takes the first source's.
        **kwargs: The fields of all ``CONFIG_EXTENSIONS``, and those of every configuration.
    """

    model_type = "mcompose"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 # pyright: ignore

    def __init__(
        self,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        sources: dict[str, dict[str, Any]] | None = None,
        image_token_id: int | None = None,
        video_token_id: int | None = None,
        audio_token_id: int | None = None,
        points_token_id: int | None = None,
        tie_word_embeddings: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, Mapping):
            text_config = text_config_of(text_config, sources or {})
        elif text_config is not None:
            # The caller's object may belong to a live model, whose attention choice this one must not touch.
            text_config = copy.deepcopy(text_config)
        self.text_config = CONFIG_MAPPING["llama"]() if text_config is None else text_config
        self.sources = copy.deepcopy(sources) if sources else {}
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.audio_token_id = audio_token_id
        self.points_token_id = points_token_id
        for extension in CONFIG_EXTENSIONS:
            extension.set_fields(self, kwargs)
        if tie_word_embeddings is None:
            tie_word_embeddings = _tied(self.text_config, self.sources)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)  # pyright: ignore[reportCallIssue]
        _check_sources(self)
        for extension in CONFIG_EXTENSIONS:
            extension.check(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``config.json`` holds; what a plain composition does not have is left out."""
        whole = super().to_dict()
        empty = [key for extension in CONFIG_EXTENSIONS for key in extension.unused(whole)]
        return {key: value for key, value in whole.items() if key not in empty}

    def served_by(self, modality: str) -> str | None:
        """Returns the name of the source that serves a modality, or None."""
        return next((name for name, source in self.sources.items() if modality in source["modalities"]), None)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that a source serves, in the order of their type ids."""
        return tuple(modality for modality in MODALITIES if self.served_by(modality))

    def placeholder_id(self, modality: str) -> int | None:
        """Returns the placeholder id of a modality, or None when it is not served."""
        return getattr(self, f"{modality}_token_id")

    def source_config(self, name: str) -> PreTrainedConfig:
        """Returns a fresh configuration object of one source's native class."""
        source = self.sources[name]
        return native_config(source["model_type"], source["config"])


def stored_source(
    config: PreTrainedConfig | Mapping[str, Any],
    *,
    modalities: Sequence[str],
    structure_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Returns the entry of one source in ``ComposedConfig.sources``.

    Args:
        config: The source's native configuration, or its ``config.json`` as a dictionary.
        modalities: What this source serves in the composition.
        structure_ids: For families that learn vectors for tokens beside the tower (Ovis2's image marks): the ids of
            these tokens in the composition's tokenizer.
    """
    whole = config.to_dict() if isinstance(config, PreTrainedConfig) else copy.deepcopy(dict(config))
    for key in ("auto_map", "_name_or_path", "transformers_version"):
        whole.pop(key, None)
    if structure_ids is not None:
        field = family_of(whole["model_type"]).structure
        if field is None:
            raise ValueError(f"Sources of type {whole['model_type']} have no structural tokens.")
        whole[field] = list(structure_ids)
    return {"model_type": whole["model_type"], "config": whole, "modalities": list(modalities)}


def composed_config(
    text_config: PreTrainedConfig | Mapping[str, Any],
    sources: Mapping[str, Mapping[str, Any]],
    *,
    placeholders: Mapping[str, int],
    tie_word_embeddings: bool | None = None,
    dtype: str | None = None,
    **extra: Any,
) -> ComposedConfig:
    """Builds the configuration of a composed checkpoint; ``.save_pretrained(dir)`` writes its ``config.json``.

    Args:
        text_config: The language model's configuration (object or dictionary with ``model_type``).
        sources: Source name -> entry made by :func:`stored_source`, in the order of the recipe.
        placeholders: Modality -> placeholder id in the composition's tokenizer.
        tie_word_embeddings: Whether head and embeddings are one tensor; None takes the first source's.
        dtype: Dtype of the stored weights, as in ``config.json`` ("bfloat16").
        **extra: Further fields, for example ``eos_token_id``.

    Returns:
        The configuration, with ``architectures`` and ``auto_map`` filled in.

    Raises:
        ValueError: When a modality is served twice or has no placeholder, or a family cannot be composed.
    """
    if dtype is not None:
        extra["dtype"] = dtype
    ids = {f"{modality}_token_id": index for modality, index in placeholders.items()}
    config = ComposedConfig(
        text_config=text_config if isinstance(text_config, PreTrainedConfig) else dict(text_config),
        sources={name: dict(entry) for name, entry in sources.items()},
        tie_word_embeddings=tie_word_embeddings,
        **ids,
        **extra,
    )
    config.architectures = ["ComposedForConditionalGeneration"]
    return config


def _tied(text_config: PreTrainedConfig, sources: Mapping[str, Mapping[str, Any]]) -> bool:
    # A native multimodal class obeys its outer setting; the one in its text part may say otherwise.
    for source in sources.values():
        if "tie_word_embeddings" in source["config"]:
            return bool(source["config"]["tie_word_embeddings"])
    return bool(getattr(text_config, "tie_word_embeddings", False))


def _check_sources(config: ComposedConfig) -> None:
    owners: dict[str, str] = {}
    for name, source in config.sources.items():
        _check_source(name, source, text_type=config.text_config.model_type)
        for modality in source["modalities"]:
            if modality in owners:
                raise ValueError(f"The modality {modality!r} is claimed by {owners[modality]!r} and by {name!r}.")
            if config.placeholder_id(modality) is None:
                raise ValueError(f"The modality {modality!r} of source {name!r} has no {modality}_token_id.")
            owners[modality] = name
    ids = {modality: config.placeholder_id(modality) for modality in owners}
    if len(set(ids.values())) != len(ids):
        raise ValueError(f"Placeholder ids must differ between modalities, got {ids}.")


def _check_source(name: str, source: Mapping[str, Any], *, text_type: str) -> None:
    kind = source["model_type"]
    if not is_plain_name(name):
        raise ValueError(f"The source name {name!r} must be letters, digits, '-' and single '_', from a letter on.")
    if reason := refusal(kind):
        raise ValueError(f"Source {name!r} ({kind}) cannot be composed: {reason}")
    for modality in source["modalities"]:
        if modality not in MODALITIES:
            known = ", ".join(MODALITIES)
            raise ValueError(f"Source {name!r} claims the unknown modality {modality!r}; known: {known}.")
    need = family_of(kind).needs_text
    if need and text_type not in need:
        raise ValueError(
            f"Source {name!r} ({kind}) needs a language model of type {' or '.join(need)}, and this is {text_type}."
        )
