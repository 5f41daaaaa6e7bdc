"""A Q-Former with the image encoder that it reads: BLIP-2 without its projection and language model.

Paper: Li et al. 2023, arXiv 2301.12597 (BLIP-2); the language projection is left out as in SPHINX's code
(Lin et al. 2023, arXiv 2311.07575).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Blip2Config, Blip2QFormerModel, Blip2VisionModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

__all__ = ["QFormerEncoder"]


class QFormerEncoder(PreTrainedModel):
    """Turns an image into the hidden states of a fixed number of queries.

    Args:
        config: BLIP-2's configuration; its language model plays no part.
    """

    config_class = Blip2Config
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules = ["query_tokens", "qformer"]  # noqa: RUF012 - as the native class keeps them

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        assert config.qformer_config is not None, "the configuration fills it in"
        width = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves everything as it is built: all of it is loaded."""

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: Any
    ) -> BaseModelOutput:
        """Runs image encoder and Q-Former.

        Args:
            pixel_values: Images, (images, 3, height, width).
            interpolate_pos_encoding: Whether the image encoder's positions are fitted to another size.
            **kwargs: Ignored; callers pass the flags of other encoders.

        Returns:
            ``last_hidden_state`` (images, queries, width).
        """
        del kwargs
        seen = self.vision_model(
            pixel_values=pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True
        ).last_hidden_state
        read = self.qformer(
            query_embeds=self.query_tokens.expand(len(seen), -1, -1),
            encoder_hidden_states=seen,
            return_dict=True,
        )
        return BaseModelOutput(last_hidden_state=read.last_hidden_state.to(seen.dtype))
