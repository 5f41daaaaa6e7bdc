"""The composed network: the towers of several multimodal models over one language model.

Letters: B text rows, L tokens, D width of the language model, V vocabulary.

Each source contributes the base model of its own native class without its language model (its "tower"): encoder,
projector and feature code are transformers' own. Their features replace the placeholders of their modality in the
embedded text, and one language model reads the result. With one source this is that source's network, and its logits
are reproduced. Paper: Chen et al. 2024, "Model Composition for Multimodal Large Language Models", arXiv 2402.12750,
section 3.

Inputs of a source are passed under ``<source>__<native name>`` (see ``towers/features.py``). Parameters are named
``model.language_model.*``, ``model.towers.<source>.*`` and ``lm_head.weight``, in memory and on disk.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from ..configuration.composed import ComposedConfig
from ..experts.extension import ExpertMethods
from ..families import family_of, text_family_of
from ..names import SEPARATOR
from ..own_code import copy_own_code
from ..positions.composed import ComposedPositions
from ..towers.build import build_tower
from ..towers.features import Features
from ..towers.inner_rules import gather_rules
from ..towers.media_features import MediaFeatures
from ..towers.native_classes import build_language_model
from .extensions import EXTENSIONS
from .forward_pass import ForwardPass, Reading
from .generation import ComposedGeneration
from .outputs import ADDED_OUTPUTS, ComposedCausalOutput, ComposedOutput
from .placement import check_missing, deepstack_inputs, embed_text, place, type_ids
from .text_head import scale_logits

__all__ = ["ComposedForConditionalGeneration", "ComposedModel", "ComposedPreTrainedModel"]

logger = logging.get_logger(__name__)


class ComposedPreTrainedModel(PreTrainedModel):
    """What both composed classes share: how transformers may load, place and run them."""

    config_class = ComposedConfig
    config: ComposedConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "audio", "text")  # pyright: ignore
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012 - transformers' contract
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: Any, is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Saves the model, the files of its extensions, and the code that ``auto_map`` names."""
        if is_main_process:
            for extension in EXTENSIONS:
                extension.save(_core(self), save_directory)
        left_out = [key for extension in EXTENSIONS for key in extension.unsaved_keys(self)]
        self._keys_to_ignore_on_save = {*(self._keys_to_ignore_on_save or ()), *left_out}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            copy_own_code(save_directory)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Loads a model as transformers does, then what its extensions keep outside its tensors."""
        made = super().from_pretrained(*args, **kwargs)
        where = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        for extension in EXTENSIONS:
            extension.load(_core(made[0] if isinstance(made, tuple) else made), where, **kwargs)
        return made


class ComposedModel(MediaFeatures, ExpertMethods, ComposedPositions, ComposedPreTrainedModel):
    """Towers over a language model, without the head.

    Args:
        config: What to build.
    """

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__(config)
        for name in config.sources:
            if hasattr(nn.ModuleDict, name):
                raise ValueError(f"{name!r} cannot name a source: torch uses the word itself. Choose another name.")
        towers = {
            name: build_tower(config.source_config(name), attn_implementation=config._attn_implementation)
            for name in config.sources
        }
        self.language_model = build_language_model(config.text_config, towers.values())
        self.towers = nn.ModuleDict(towers)
        for extension in EXTENSIONS:
            extension.build(self, config)
        absent = [pattern for extension in EXTENSIONS for pattern in extension.absent_keys(config)]
        self._keys_to_ignore_on_load_missing = absent or None
        inner = (model for each in EXTENSIONS for model in each.inner_models(self))
        gather_rules(self, [*self.towers.values(), *inner])
        self.ids: dict[str, Any] = {modality: config.placeholder_id(modality) for modality in config.modalities}
        families = [family_of(source["model_type"]) for source in config.sources.values()]
        self.attention = next((f.attention for f in families if f.attention != "causal"), "causal")
        self.first_position = max((f.first_position for f in families), default=0)
        self.mrope = text_family_of(config.text_config.model_type).mrope
        if not self.mrope and any(family.mrope for family in families):
            logger.warning_once(
                f"The language model ({config.text_config.model_type}) counts positions in one dimension, so images "
                "and videos of M-RoPE sources are read as a line of tokens and not on their grid."
            )
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """Returns the language model's embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's embedding."""
        self.language_model.set_input_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """Returns the language model."""
        return self.language_model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        mm_features: dict[str, Features] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the language model over text and media.

        Args:
            input_ids: Token ids (B, L) with placeholders.
            attention_mask: 2-D mask (B, L) of real tokens, or one made ready by ``generate``.
            position_ids: (B, L), or (3 or 4, B, L) for M-RoPE; None counts them.
            past_key_values: Cache of earlier tokens.
            inputs_embeds: Embedded text (B, L, D) instead of ``input_ids``.
            mm_token_type_ids: Type per token (B, L); derived from ``input_ids`` when they are given.
            token_type_ids: For languages with a bidirectional part, as the native class takes them.
            mm_features: Features that were made already, instead of media inputs.
            use_cache: Whether to return a cache.
            **kwargs: ``<source>__<name>`` and ``<expert>__<name>`` inputs, and what the extensions take
                (``experts.places.Extras``: ``expert_features``, ``router_labels``, ``hidden``, ``padding_mask``...);
                everything else goes to the language model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either input_ids or inputs_embeds.")
        run = ForwardPass(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            kwargs,
            self.get_placeholder_mask(input_ids, mm_token_type_ids),
            counted_mask=attention_mask,
        )
        for extension in EXTENSIONS:
            extension.begin(self, run)
        media, run.kwargs = self._split(run.kwargs)
        run.features = self.encode_media(media, run.items) if mm_features is None else mm_features
        for extension in EXTENSIONS:
            extension.encode(self, run)
        x_BLD = self._embedded(run, inputs_embeds)
        typed = self.mrope or self.attention != "causal"
        types_BL = type_ids(self.ids, input_ids) if typed and input_ids is not None else mm_token_type_ids
        deltas = None
        if position_ids is None:
            position_ids, deltas = self._positions(x_BLD, types_BL, media, run.counted_mask, past_key_values)
        reading = Reading(
            x_BLD,
            attention_mask,
            position_ids,
            types_BL,
            token_type_ids,
            self._origin(run),
            deepstack_inputs(run.features, run.masks),
        )
        outputs = self._read(run, reading, use_cache)
        if deltas is not None and outputs.past_key_values is not None:
            # The cache carries them: state on the model would leak from one call into the next.
            outputs.past_key_values.mrope_deltas = deltas
        added: dict[str, Any] = {}
        for extension in EXTENSIONS:
            added |= extension.outputs(self, run)
        return ComposedOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **added,
        )

    def _read(self, run: ForwardPass, reading: Reading, use_cache: bool | None) -> Any:
        for extension in EXTENSIONS:
            reading = extension.edit(self, run, reading)
        attention_mask = self._two_way(
            reading.x_BLD,
            reading.types_BL,
            reading.token_type_ids,
            reading.attention_mask,
            run.past_key_values,
            reading.position_ids,
        )
        further: dict[str, Any] = {}
        for extension in EXTENSIONS:
            further |= extension.language_inputs(self, run, reading)
        outputs = self.language_model(
            inputs_embeds=reading.x_BLD,
            attention_mask=attention_mask,
            position_ids=reading.position_ids,
            past_key_values=run.past_key_values,
            use_cache=use_cache,
            **reading.deepstack,
            **further,
            **run.kwargs,
        )
        for extension in EXTENSIONS:
            extension.check_read(self, further, outputs)
        return outputs

    def _split(self, kwargs: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        prefixes = tuple(f"{name}{SEPARATOR}" for name in self.config.sources)
        mine = {key: value for key, value in kwargs.items() if prefixes and key.startswith(prefixes)}
        rest = {key: value for key, value in kwargs.items() if key not in mine}
        return (self.media_inputs(mine) if mine else {}), rest

    def _embedded(self, run: ForwardPass, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        input_ids, features = run.input_ids, run.features
        if inputs_embeds is None and input_ids is not None:
            replaced = [*self.ids.values(), *(index for made in features.values() for index in made.structure)]
            replaced += [index for extension in EXTENSIONS for index in extension.own_ids(self.config)]
            inputs_embeds = embed_text(self.get_input_embeddings(), input_ids, replaced)
        check_missing(features, {} if input_ids is None else run.masks, past_key_values=run.past_key_values)
        x_BLD = cast("torch.Tensor", inputs_embeds)
        for extension in EXTENSIONS:
            x_BLD = extension.place(self, run, x_BLD)
        return place(x_BLD, features, run.masks, input_ids=input_ids)

    def _origin(self, run: ForwardPass) -> dict[str, torch.Tensor]:
        # What a decoding step reads is text, whatever its ids are: only media that came now are routed.
        origin = {m: mask for m, mask in run.masks.items() if run.input_ids is None or m in run.features}
        for extension in EXTENSIONS:
            origin = extension.origin(self, run, origin)
        return origin


def _core(model: Any) -> ComposedModel:
    return model if isinstance(model, ComposedModel) else model.model


class ComposedForConditionalGeneration(  # pyright: ignore[reportIncompatibleMethodOverride]
    ComposedPreTrainedModel, ComposedGeneration, GenerationMixin
):
    """A composed model with its head, that answers.

    Args:
        config: What to build.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__(config)
        self.model = ComposedModel(config)
        self._keys_to_ignore_on_load_missing = self.model._keys_to_ignore_on_load_missing
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Returns the head."""
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        """Returns the language model."""
        return self.model.language_model

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Returns the tower that serves a modality; without one, the model itself."""
        return self if self.config.served_by(modality or "") is None else self.model.get_encoder(modality)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        mm_features: dict[str, Features] | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the model; with ``labels`` (B, L, -100 where nothing is learned) the loss too.

        The other arguments are those of :meth:`ComposedModel.forward`; ``logits_to_keep`` limits the head to the last
        so many positions.
        """
        if labels is not None and token_type_ids is None and self.model.attention == "prefix":
            token_type_ids = (labels != -100).long()
        if labels is not None:
            for extension in EXTENSIONS:
                kwargs |= extension.read_labels(self.model, labels, kwargs)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            token_type_ids=token_type_ids,
            mm_features=mm_features,
            use_cache=use_cache,
            **kwargs,
        )
        x_BLD = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = scale_logits(self.lm_head(x_BLD[:, kept, :]), self.config)
        loss = None
        if labels is not None:
            # Placeholders without a row in the head cannot be learned.
            labels = labels.masked_fill(labels >= self.config.text_config.vocab_size, -100)
            for extension in EXTENSIONS:
                labels = extension.edit_labels(labels, outputs, {**kwargs, "attention_mask": attention_mask})
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        for extension in EXTENSIONS:
            term = extension.loss(self.model, outputs)
            if term is not None:
                loss = term if loss is None else loss + term.to(loss.device)
        found = {"past_key_values": outputs.past_key_values, "hidden_states": outputs.hidden_states}
        found |= {"logits": logits, "attentions": outputs.attentions}
        added = {name: getattr(outputs, name) for name in ADDED_OUTPUTS}
        if all(value is None for value in added.values()):
            return CausalLMOutputWithPast(loss=loss, **found)
        return ComposedCausalOutput(loss=loss, **found, **added)
