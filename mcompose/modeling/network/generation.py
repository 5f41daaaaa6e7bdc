# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
"""``generate`` for composed models: input names, positions and beams.

Media are encoded once. When a prompt is repeated (beams, several samples) its features are repeated, not its pixels:
the general rule of transformers repeats every tensor row by row, which puts items in the wrong order as soon as a
prompt has two of them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_masks_for_generate

from ..experts.routing import has_slots, route_batch, routed_generation
from ..names import SEPARATOR
from ..positions.masks import bidirectional_masks
from .extensions import EXTENSIONS
from .placement import expand_features, type_ids

__all__ = ["ComposedGeneration"]


class ComposedGeneration(GenerationMixin):
    """The hooks of ``generate`` that a composed model answers differently."""

    model: Any
    config: Any

    def route(self, input_ids: torch.Tensor, *, experts: Any = "auto", **batch: Any) -> dict[str, Any]:
        """Chooses experts for the items of a batch and writes their blocks in place of the slots.

        Args:
            input_ids: Token ids (B, L) with one slot after each item; without slots the batch comes back as it is.
            experts: "auto" asks the router; "none", a name, a list with a name or None for each item, or a mapping
                from modality to one of these force it.
            **batch: Everything else that the processor gave, and ``labels`` and ``position_ids`` when there are any.

        Returns:
            Inputs for ``forward`` and ``generate`` (features that were made are handed on), and ``routes``: the
            experts of each item, in reading order.
        """
        return route_batch(self.model, {"input_ids": input_ids, **batch}, experts=experts)

    @torch.no_grad()
    def generate(  # pyright: ignore[reportInconsistentOverload]
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        experts: Any = "auto",
        **kwargs: Any,
    ) -> Any:
        """Answers a prompt; slots are resolved first, as by :meth:`route`.

        Args:
            inputs: Token ids (B, L), or ``input_ids``.
            *args: As transformers has them.
            experts: As in :meth:`route`; used where the prompt has slots.
            **kwargs: Media inputs and what else ``generate`` takes.

        Returns:
            As transformers; the prompt in it is the one that was given, with its slots.
        """
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        given = kwargs.get("inputs_embeds") if prompt is None else prompt
        if isinstance(given, torch.Tensor):
            for extension in EXTENSIONS:
                kwargs |= extension.begin_generation(self.model, kwargs, given)
        if not self.config.experts or prompt is None:
            return super().generate(inputs, *args, **kwargs)
        slots = has_slots(self.config, prompt)
        prepared = routed_generation(
            self.model,
            {**kwargs, "input_ids": prompt},
            experts=experts,
            positions=self._prepare_position_ids_for_generation,
        )
        made = super().generate(None, *args, **prepared)
        return _with_prompt(made, prompt, prepared["input_ids"].shape[1]) if slots else made

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        known = {name for names in self.model.input_names().values() for name in names}
        known.update(name for extension in EXTENSIONS for name in extension.input_names(self.model))
        super()._validate_model_kwargs({key: value for key, value in model_kwargs.items() if key not in known})

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        plain = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        if not self.model.mrope:
            return plain + self.model.first_position
        cache = model_kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        grid = (plain + getattr(cache, "mrope_deltas", 0)).expand(3, -1, -1)
        input_ids = model_kwargs.get("input_ids", inputs_tensor)
        types = model_kwargs.get("mm_token_type_ids")
        if input_ids.dim() == 2:
            types = type_ids(self.model.ids, input_ids)
        media = self.model.media_inputs(model_kwargs)
        if media and types is not None:
            mask = model_kwargs.get("attention_mask")
            new, deltas = self.model.rope_positions(types[:, past:], media, mask, cache)
            grid = torch.cat([grid[..., :past].expand(-1, new.shape[1], -1), new], dim=-1)
            if cache is not None:
                cache.mrope_deltas = deltas
        # The first of the four is the plain position, by which masks are made.
        return torch.cat([plain[None].expand(1, *grid.shape[1:]), grid])

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        media = self.model.media_inputs(model_kwargs) if expand_size > 1 else {}
        ready = model_kwargs.get("mm_features")
        if expand_size > 1 and (media or ready):
            masks = self.model.get_placeholder_mask(input_ids, model_kwargs.get("mm_token_type_ids"))
            features = self.model.encode_media(media) if ready is None else ready
            model_kwargs = {key: value for key, value in model_kwargs.items() if not self._is_tower_input(key)}
            model_kwargs["mm_features"] = {
                modality: expand_features(made, masks[modality], expand_size) for modality, made in features.items()
            }
        if expand_size > 1:
            for extension in EXTENSIONS:
                model_kwargs = extension.expand(self.model, model_kwargs, input_ids, expand_size)
        if self.model.attention == "prefix" and model_kwargs.get("token_type_ids") is None and input_ids is not None:
            model_kwargs["token_type_ids"] = torch.zeros_like(input_ids)
        return super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )

    def _update_model_kwargs_for_generation(self, *args: Any, num_new_tokens: int = 1, **kwargs: Any) -> dict[str, Any]:
        updated = super()._update_model_kwargs_for_generation(*args, num_new_tokens=num_new_tokens, **kwargs)
        if self.model.attention == "prefix" and updated.get("token_type_ids") is not None:
            # What is generated is no part of the prompt that sees both ways.
            updated["token_type_ids"][:, -num_new_tokens:] = 1
        return updated

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepares one step; media are read in the first step only, unless there is no cache."""
        if self.model.attention == "image_blocks" and kwargs.get("token_type_ids") is None:
            kwargs["token_type_ids"] = type_ids(self.model.ids, input_ids)
        prepared = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):
            return prepared
        return {key: value for key, value in prepared.items() if not self._is_media(key)}

    def create_masks_for_generate(
        self,
        config: Any,
        mm_token_type_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        block_sequence_ids: torch.Tensor | None = None,
        **mask_inputs: Any,
    ) -> Any:
        """Makes masks ahead of a compiled step, as ``ComposedModel.forward`` would."""
        kind = self.model.attention
        if kind == "causal" or token_type_ids is None or (kind == "prefix" and not is_first_iteration):
            return create_masks_for_generate(config=config, **mask_inputs)
        return bidirectional_masks(kind, token_type_ids, config=config.get_text_config(), **mask_inputs)

    def _is_media(self, key: str) -> bool:
        """Returns whether an argument is used up in the first step."""
        return self._is_tower_input(key) or any(extension.is_input(self.config, key) for extension in EXTENSIONS)

    def _is_tower_input(self, key: str) -> bool:
        return key == "mm_features" or (SEPARATOR in key and key.split(SEPARATOR)[0] in self.config.sources)


def _with_prompt(made: Any, prompt: torch.Tensor, length: int) -> Any:
    """Puts the prompt that was given in place of the longer one that was read."""
    sequences = made if isinstance(made, torch.Tensor) else made.sequences
    repeated = prompt.repeat_interleave(len(sequences) // len(prompt), dim=0).to(sequences.device)
    sequences = torch.cat([repeated, sequences[:, length:]], dim=-1)
    if isinstance(made, torch.Tensor):
        return sequences
    made.sequences = sequences
    return made
