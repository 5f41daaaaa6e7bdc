"""A mix of image encoders as one tower: views of pictures in, vectors of the language model's width out.

Letters: V views that are run, A all views with empty tiles, I pictures, T vectors of one view, D width of the language
model.

The views of all pictures of a batch are one row of inputs; ``view_kinds`` (A,) says which of them stand where (1, or 0
for an empty tile, which no encoder reads), ``view_counts`` (I,) how many views each picture has.

Paper: Lin et al. 2023, arXiv 2311.07575; Liu et al. 2024, arXiv 2402.05935 (empty tiles).
Differs: encoders, streams and grids are the configuration's; the learned vector of an empty tile replaces the vectors
around the view too, which the paper does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from ..experts.projectors import build_projector
from ..names import SEPARATOR
from ..towers.inner_rules import gather_rules
from .configuration import VisionMixConfig
from .encoders import MixedEncoder, SourceTower, ViewVectors, on_grid

__all__ = ["VisionMixModel", "projector_widths"]


class VisionMixModel(PreTrainedModel):
    """Several image encoders, and the layers from them to the language model.

    Args:
        config: What to build.
    """

    config_class = VisionMixConfig
    base_model_prefix = "model"
    main_input_name = "view_kinds"
    input_modalities: Any = ("image", "video")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VisionMixConfig) -> None:
        super().__init__(config)
        self.encoders = nn.ModuleDict(
            {
                name: (SourceTower if "source" in entry else MixedEncoder)(
                    name, entry, attn_implementation=config._attn_implementation
                )
                for name, entry in config.encoders.items()
            }
        )
        self.projectors = nn.ModuleDict()
        for index, (stream, width) in enumerate(zip(config.streams, projector_widths(config), strict=True)):
            if width is not None:
                self.projectors[str(index)] = build_projector(
                    stream["projector"], width=width, text_width=config.text_width
                )
        if config.marks:
            self.start = nn.Parameter(torch.zeros(config.text_width))
            self.end = nn.Parameter(torch.zeros(config.text_width))
        if config.skips:
            self.empty = nn.Parameter(torch.zeros(config.text_width))
        encoders = [getattr(one, "encoder", None) or getattr(one, "tower", None) for one in self.encoders.values()]
        gather_rules(self, encoders)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves everything as it is built: encoders are loaded, and the rest is drawn by the merge."""

    def media_names(self) -> list[str]:
        """Returns the names of all inputs; the first tells that pictures are there."""
        names = ["view_kinds", "view_counts"]
        for name, encoder in self.encoders.items():
            names += [f"{name}{SEPARATOR}{native}" for native in encoder.input_names]  # pyright: ignore
        return names

    def frozen_parts(self) -> dict[str, nn.Module]:
        """Returns the modules whose outputs can be kept and played back in training, by name."""
        parts: dict[str, nn.Module] = {}
        for name, encoder in self.encoders.items():
            if isinstance(encoder, SourceTower):
                parts |= {f"{name}.{inner}": module for inner, module in encoder.tower.named_children()}
            else:
                parts[name] = encoder.encoder  # pyright: ignore[reportArgumentType]
        return parts

    def get_image_features(self, **inputs: Any) -> BaseModelOutputWithPooling:
        """Views as the language model reads them.

        Args:
            **inputs: ``view_kinds`` (A,), and for every encoder its own tensors as ``<encoder>__<native name>``, one
                row per view that is run.

        Returns:
            ``pooler_output`` (N, D): the vectors of all views, in order.

        Raises:
            ValueError: An encoder ran on another number of views than there are.
        """
        inputs.pop("return_dict", None)
        shown_A = inputs["view_kinds"].bool()
        made = {name: encoder(_own(name, inputs)) for name, encoder in self.encoders.items()}
        view_VTD = torch.cat(
            [self._stream(index, stream, made) for index, stream in enumerate(self.config.streams)], dim=1
        )
        if len(view_VTD) != int(shown_A.sum()):
            raise ValueError(f"The encoders ran on {len(view_VTD)} views, and {int(shown_A.sum())} are to be shown.")
        if self.config.marks:
            around = [vector.to(view_VTD).expand(len(view_VTD), 1, -1) for vector in (self.start, self.end)]
            view_VTD = torch.cat([around[0], view_VTD, around[1]], dim=1)
        return BaseModelOutputWithPooling(pooler_output=self._in_order(view_VTD, shown_A))  # pyright: ignore

    def forward(self, **inputs: Any) -> BaseModelOutputWithPooling:
        """The same as :meth:`get_image_features`."""
        return self.get_image_features(**inputs)

    def _stream(self, index: int, stream: Mapping[str, Any], made: Mapping[str, ViewVectors]) -> torch.Tensor:
        """Returns what the language model reads of one stream, (V, T, D)."""
        parts = [made[name] for name in stream["of"]]
        if stream.get("grid"):
            keep = any(self.config.encoders[name].get("class_token") for name in stream["of"])
            x_VTE = torch.cat([on_grid(part, int(stream["grid"]), class_token=keep) for part in parts], dim=-1)
        else:
            first = parts[0]
            leading = [] if first.class_VE is None else [first.class_VE[:, None]]
            x_VTE = torch.cat([*leading, first.x_VTE], dim=1)
        if str(index) not in self.projectors:
            return x_VTE
        projector = self.projectors[str(index)]
        weight = next(projector.parameters())
        return projector(x_VTE.to(weight.device, weight.dtype))

    def _in_order(self, view_VTD: torch.Tensor, shown_A: torch.Tensor) -> torch.Tensor:
        if bool(shown_A.all()):
            return view_VTD.flatten(0, 1)
        if not self.config.skips:
            raise ValueError("A tile is said to be empty, and this tower has no learned vector for empty tiles.")
        rows = iter(view_VTD)
        empty = self.empty[None].to(view_VTD)
        return torch.cat([next(rows) if shown else empty for shown in shown_A.tolist()])


def projector_widths(config: VisionMixConfig) -> list[int | None]:
    """Returns what each stream's projector reads; None where a source's own projector was applied."""
    widths: list[int | None] = []
    for stream in config.streams:
        entries = [config.encoders[name] for name in stream["of"]]
        widths.append(None if "source" in entries[0] else sum(int(entry["width"]) for entry in entries))
    return widths


def _own(name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{name}{SEPARATOR}"
    return {key.removeprefix(prefix): value for key, value in inputs.items() if key.startswith(prefix)}
