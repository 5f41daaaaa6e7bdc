"""The encoders: a general one that sees small pictures, and three experts of different classes.

========  ====================  ======================================================  ========
general   CLIPVisionModel       32 px, class token                                      16 tokens
chart     Pix2StructVisionModel patches of 12 px at the picture's own shape, padded     56 to 66 of 70
table     Dinov2Model           96 px, class token                                      64 tokens
document  SiglipVisionModel     96 px, no class token                                   64 tokens
========  ====================  ======================================================  ========

In the family ``pictures-reading`` the general one sees 64 px and has 64 tokens.

The classes differ on purpose, so that code that takes experts is tested with class tokens, padding, and several widths
and numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedModel

__all__ = ["Encoder", "build_encoder"]

_EXPERT_SIDE: Final = 96
_EXPERT_PATCH: Final = 12
_CHART_PATCH: Final = 12
_CHART_TOKENS: Final = 70  # enough for charts of 7 x 8, 9 x 7 and 11 x 6 patches without resizing


@dataclass(frozen=True)
class Encoder:
    """An encoder before it is written to disk.

    Args:
        name: "general" or the expert's domain.
        model: Model of a class of transformers.
        processor: Image processor of the model.
        width: Size of a token's vector.
        class_token: Whether the first token of its output is a class token.
        side: Height and width that pictures are resized to, in pixels; 0 keeps their own shape.
        patch: Height and width of a patch, in pixels.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    width: int
    class_token: bool
    side: int
    patch: int

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Makes the model's inputs of pictures.

        Args:
            images: Pictures in RGB.

        Returns:
            Inputs by the names of the model's arguments; the first dimension is that of the pictures.
        """
        made = self.processor(images=list(images), return_tensors="pt")
        return {name: made[name] for name in self.processor.model_input_names if name in made}

    def encode(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Encodes pictures; leaves the class token out.

        Args:
            inputs: Inputs from ``prepare``.

        Returns:
            Tokens with those of the padding, (pictures, tokens, width).
        """
        tokens = self.model(**inputs).last_hidden_state
        return tokens[:, 1:] if self.class_token else tokens

    def token_boxes(self, inputs: Mapping[str, torch.Tensor], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
        """Returns the box of each token's patch.

        Args:
            inputs: Inputs from ``prepare``.
            sizes: Width and height of each picture in pixels.

        Returns:
            Left, top, right and bottom in the picture's pixels, zeros for padding, (pictures, tokens, 4).
        """
        shapes = np.array(sizes, dtype=np.float64)
        if self.side:
            count = self.side // self.patch
            down, across = np.divmod(np.arange(count * count), count)
            grid = np.stack([across, down, across + 1, down + 1], axis=-1) / count
            return grid[None] * np.tile(shapes, 2)[:, None]
        places = inputs["flattened_patches"][..., :2].numpy().astype(np.int64)  # row and column, counted from 1
        most = np.maximum(places.max(axis=1, keepdims=True), 1)
        step = shapes[:, None, ::-1] / most
        corner = (places - 1) * step
        boxes = np.concatenate([corner[..., ::-1], (corner + step)[..., ::-1]], axis=-1)
        return np.where(places[..., :1] > 0, boxes, 0.0)


def build_encoder(name: str, *, general_side: int = 32) -> Encoder:
    """Builds an encoder with fresh weights, and its image processor.

    Args:
        name: "general", "chart", "table" or "document".
        general_side: Height and width that the general encoder resizes pictures to, in pixels.

    Returns:
        The encoder. Its weights come from torch's global generator: call this inside ``deterministic_torch``.
    """
    return _general(general_side) if name == "general" else _EXPERTS[name]()


def _general(pixels: int) -> Encoder:
    from transformers import CLIPVisionConfig, CLIPVisionModel  # noqa: PLC0415 - import cost
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: PLC0415 - as above

    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, projection_dim=64, num_hidden_layers=3, num_attention_heads=4,
        image_size=pixels, patch_size=8,
    )  # fmt: skip
    side = {"height": pixels, "width": pixels}
    processor = CLIPImageProcessorPil(size=side, crop_size=side, **_PLAIN)
    return Encoder("general", CLIPVisionModel(config), processor, 64, class_token=True, side=pixels, patch=8)


def _chart() -> Encoder:
    from transformers import Pix2StructVisionConfig, Pix2StructVisionModel  # noqa: PLC0415 - import cost
    from transformers.models.pix2struct.image_processing_pil_pix2struct import (  # noqa: PLC0415 - as above
        Pix2StructImageProcessorPil,
    )

    config = Pix2StructVisionConfig(
        hidden_size=96, patch_embed_hidden_size=3 * _CHART_PATCH**2, d_ff=192, d_kv=24, num_hidden_layers=2,
        num_attention_heads=4, seq_len=_CHART_TOKENS, dropout_rate=0.0, initializer_range=0.08,
    )  # fmt: skip
    patch = {"height": _CHART_PATCH, "width": _CHART_PATCH}
    own: dict[str, Any] = {"max_patches": _CHART_TOKENS, "patch_size": patch}
    processor = Pix2StructImageProcessorPil(**own)
    return Encoder("chart", Pix2StructVisionModel(config), processor, 96, class_token=False, side=0, patch=_CHART_PATCH)


def _table() -> Encoder:
    from transformers import Dinov2Config, Dinov2Model  # noqa: PLC0415 - import cost
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil  # noqa: PLC0415 - as above

    config = Dinov2Config(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=2, image_size=_EXPERT_SIDE,
        patch_size=_EXPERT_PATCH, initializer_range=0.08,
    )  # fmt: skip
    side = {"height": _EXPERT_SIDE, "width": _EXPERT_SIDE}
    processor = BitImageProcessorPil(size=side, crop_size=side, **_PLAIN)
    return Encoder(
        "table", Dinov2Model(config), processor, 96, class_token=True, side=_EXPERT_SIDE, patch=_EXPERT_PATCH
    )


def _document() -> Encoder:
    from transformers import SiglipVisionConfig, SiglipVisionModel  # noqa: PLC0415 - import cost
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: PLC0415

    config = SiglipVisionConfig(
        hidden_size=80, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, image_size=_EXPERT_SIDE,
        patch_size=_EXPERT_PATCH, vision_use_head=False,
    )  # fmt: skip
    processor = SiglipImageProcessorPil(size={"height": _EXPERT_SIDE, "width": _EXPERT_SIDE}, **_PLAIN)
    return Encoder(
        "document", SiglipVisionModel(config), processor, 80, class_token=False, side=_EXPERT_SIDE, patch=_EXPERT_PATCH
    )


_PLAIN: Final[dict[str, Any]] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": True}
_EXPERTS: Final[dict[str, Callable[[], Encoder]]] = {
    "chart": _chart,
    "table": _table,
    "document": _document,
}
