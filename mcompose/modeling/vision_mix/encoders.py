"""The encoders of a mix: frozen models on views, each giving vectors, and where it has a grid, a map.

Letters: V views, T vectors of one view, E width of the encoder, D width of the language model.

Paper: Lin et al. 2023, arXiv 2311.07575, as its code has it: CLIP is read behind its closing norm with its class token,
and a map without one gets the mean of its cells in that place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..configuration.native import native_config
from ..experts.encoder import FrozenEncoder, token_rows
from ..towers.features import accepted_names, main_input, tower_features
from ..towers.native_classes import build_native_tower

__all__ = ["MixedEncoder", "SourceTower", "ViewVectors", "on_grid"]


@dataclass
class ViewVectors:
    """What an encoder made of views.

    Args:
        x_VTE: Vectors, without the class token.
        class_VE: The class token, where it is kept.
        grid: Rows and columns of the vectors, None where they are a sequence.
    """

    x_VTE: torch.Tensor  # noqa: N815 - shape suffix
    class_VE: torch.Tensor | None = None  # noqa: N815 - shape suffix
    grid: tuple[int, int] | None = None


class MixedEncoder(FrozenEncoder):
    """One encoder of a mix.

    Args:
        name: Name of the encoder in the mix.
        entry: Entry of the encoder in ``VisionMixConfig.encoders``.
        attn_implementation: The composition's own.
    """

    noun = "encoder"

    def __init__(self, name: str, entry: Mapping[str, Any], *, attn_implementation: str | None) -> None:
        super().__init__(name, entry, attn_implementation=attn_implementation)
        self.freeze()

    @property
    def input_names(self) -> list[str]:
        """Native names of what it reads, the views first."""
        return list(self.entry.get("inputs", self.known[:1]))

    def forward(self, inputs: Mapping[str, Any]) -> ViewVectors:
        """Runs the encoder on views.

        Args:
            inputs: The tensors of its processor, one row per view, by native name.

        Raises:
            ValueError: The number of vectors is not what the configuration says.
        """
        given = self.given(inputs)
        if self.entry.get("interpolate"):
            given["interpolate_pos_encoding"] = True
        x_VTE = token_rows(self.read(given), self.width)
        if self.entry.get("norm"):
            x_VTE = self.encoder.get_submodule(self.entry["norm"])(x_VTE)
        leading, keep = int(self.entry.get("leading", 0)), bool(self.entry.get("class_token"))
        class_VE = x_VTE[:, 0] if keep and leading else None
        x_VTE = x_VTE[:, leading:]
        grid = self.entry.get("grid")
        made = ViewVectors(x_VTE, class_VE, None if grid is None else (int(grid[0]), int(grid[1])))
        if x_VTE.shape[1] + (class_VE is not None) != self.entry["tokens"]:
            raise ValueError(
                f"The encoder {self.name!r} made {x_VTE.shape[1]} vectors of a view, and its configuration says "
                f"{self.entry['tokens']}."
            )
        return made


class SourceTower(nn.Module):
    """The image tower of a source as one encoder of a mix, with the projector that it came with.

    Args:
        name: Name of the encoder in the mix.
        entry: Entry of the encoder in ``VisionMixConfig.encoders``.
        attn_implementation: The composition's own.
    """

    def __init__(self, name: str, entry: Mapping[str, Any], *, attn_implementation: str | None) -> None:
        super().__init__()
        self.name = name
        self.entry = dict(entry)
        config = native_config(entry["source"]["model_type"], entry["source"]["config"])
        self.tower = build_native_tower(config, attn_implementation=attn_implementation)

    @property
    def input_names(self) -> list[str]:
        """Native names of what it reads, the views first."""
        main = main_input(self.tower, "image")
        return [main, *(name for name in accepted_names(self.tower, "image") if name != main)]

    def forward(self, inputs: Mapping[str, Any]) -> ViewVectors:
        """Runs the tower on views.

        Args:
            inputs: The tensors of the source's processor for all views, by native name.

        Raises:
            ValueError: The number of vectors is not what the configuration says.
        """
        x_ND = tower_features(self.tower, "image", inputs).x_ND
        if len(x_ND) % self.entry["tokens"]:
            raise ValueError(
                f"The tower {self.name!r} made {len(x_ND)} vectors, and its configuration says {self.entry['tokens']} "
                "for each view."
            )
        return ViewVectors(x_ND.unflatten(0, (-1, self.entry["tokens"])))


def on_grid(made: ViewVectors, side: int, *, class_token: bool) -> torch.Tensor:
    """Returns vectors (V, side * side, E) on a square grid, and before them a class token where one is asked for.

    A map is enlarged by whole factors by repeating its cells, as the paper's code does, and otherwise bilinearly. The
    class token of an encoder without one is the mean of its cells.

    Args:
        made: What an encoder made.
        side: Rows and columns of the grid.
        class_token: Whether a class token comes first.

    Raises:
        ValueError: The vectors have no grid.
    """
    if made.grid is None:
        raise ValueError("A sequence of vectors has no grid on which its channels could stand beside others.")
    x_VTE, (rows, columns) = made.x_VTE, made.grid
    first_VE = x_VTE.mean(dim=1) if made.class_VE is None else made.class_VE
    if (rows, columns) != (side, side):
        map_VEHW = x_VTE.transpose(1, 2).unflatten(2, (rows, columns))
        if side % rows == 0 and side % columns == 0:
            map_VEHW = nn.functional.interpolate(map_VEHW, size=(side, side), mode="nearest")
        else:
            # In float32: half precision would round the weights of the four neighbours.
            large = nn.functional.interpolate(map_VEHW.float(), size=(side, side), mode="bilinear", antialias=True)
            map_VEHW = large.to(x_VTE.dtype)
        x_VTE = map_VEHW.flatten(2).transpose(1, 2)
    return torch.cat([first_VE[:, None], x_VTE], dim=1) if class_token else x_VTE
