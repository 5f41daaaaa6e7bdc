"""Prepares pictures for a mix of image encoders: cut into views, and every view in the form that each encoder reads.

For an encoder that reads plain pixels, the whole canvas is resized to its own size for each tile and then cut, so that
an encoder of 224 beside one of 512 sees tiles of a 448 copy, as the paper's code does. An encoder whose processor makes
anything else, and the tower of a source, get each view as a picture for that processor.

Paper: Lin et al. 2023, arXiv 2311.07575 (padded to a square with the mean colour, bicubic).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import ImageProcessingMixin
from transformers.image_utils import load_image

from ..experts.processing import native_inputs
from ..families import PLACEHOLDERS
from ..names import SEPARATOR
from .views import PictureViews, fitted_canvas, largest_grid, view_layout

__all__ = ["VisionMixProcessor"]

_BICUBIC = Image.Resampling.BICUBIC


class VisionMixProcessor(ImageProcessingMixin):
    """Cuts pictures into views and prepares them for every encoder.

    Args:
        views: ``views`` of ``VisionMixConfig``, and ``colour``: red, green and blue of the filling, 0 to 255.
        encoders: Name -> what it reads. ``{"size", "mean", "std", "scale"}`` are plain pixels of a square;
            ``{"inputs"}`` are the tensors of its own processor; ``{"model_type"}`` is the tower of a source.
        view_tokens: Placeholders of one view.
        frames: Frames of a video, evenly spaced; None where videos are not served.
    """

    def __init__(
        self,
        views: Mapping[str, Any] | None = None,
        encoders: Mapping[str, Mapping[str, Any]] | None = None,
        view_tokens: int = 0,
        frames: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.views = dict(views or {})
        self.encoders = {name: dict(entry) for name, entry in (encoders or {}).items()}
        self.view_tokens = view_tokens
        self.frames = frames
        self.processor_class = type(self).__name__
        self.natives: dict[str, Any] = {}

    @property
    def native_names(self) -> list[str]:
        """Encoders that bring a processor of their own."""
        return [name for name, entry in self.encoders.items() if "size" not in entry]

    @property
    def most_tokens(self) -> int:
        """The most placeholders of a picture."""
        tiles = largest_grid(self.views)
        return self.view_tokens * (tiles + (self.views["overview"] != "none") if tiles > 1 else 1)

    def count(self, width: int, height: int) -> int:
        """Returns the placeholders of a picture.

        Args:
            width: Width in pixels.
            height: Height in pixels.
        """
        shown = view_layout(width, height, self.views).shown
        return sum(1 if view is None else self.view_tokens for view in shown)

    def expand(self, modality: str, items: Sequence[Any]) -> tuple[list[str], dict[str, Any]]:
        """Prepares pictures, or videos frame by frame.

        Args:
            modality: "image" or "video".
            items: The items, in order.

        Returns:
            For each item the text that its placeholder becomes, and the tensors by native name.

        Raises:
            ValueError: Videos are not served, or an item is not a picture.
        """
        if modality == "video" and not self.frames:
            raise ValueError("This mix of encoders reads pictures only; write 'video' frames in its recipe for films.")
        groups = [self._frames(item) for item in items] if modality == "video" else [[_opened(item)] for item in items]
        pictures = [picture for group in groups for picture in group]
        layouts = [view_layout(*picture.size, self.views) for picture in pictures]
        tensors: dict[str, Any] = {
            "view_kinds": torch.tensor([int(view is not None) for layout in layouts for view in layout.shown]),
            "view_counts": torch.tensor([len(layout.shown) for layout in layouts]),
        }
        for name, entry in self.encoders.items():
            made = self._pixels(entry, pictures, layouts) if "size" in entry else self._natives(name, pictures, layouts)
            tensors |= {f"{name}{SEPARATOR}{key}": value for key, value in made.items()}
        counts = iter([sum(1 if view is None else self.view_tokens for view in layout.shown) for layout in layouts])
        texts = [PLACEHOLDERS[modality] * sum(next(counts) for _ in group) for group in groups]
        return texts, tensors

    def _frames(self, item: Any) -> list[Image.Image]:
        frames = [_opened(frame) for frame in item]
        if not frames:
            raise ValueError("A video has no frames.")
        count, wanted = len(frames), int(self.frames or 0)
        return [frames[index * count // wanted] for index in range(wanted)] if count > wanted else frames

    def _pixels(
        self, entry: Mapping[str, Any], pictures: Sequence[Image.Image], layouts: Sequence[PictureViews]
    ) -> dict[str, torch.Tensor]:
        side = int(entry["size"])
        shown = [
            tile
            for picture, layout in zip(pictures, layouts, strict=True)
            for tile in self._tiles(picture, layout, side)
        ]
        scaled = np.stack([np.asarray(tile, dtype=np.float32) for tile in shown]) * np.float32(entry["scale"])
        mean, std = (np.asarray(entry[key], dtype=np.float32) for key in ("mean", "std"))
        return {str(entry["input"]): torch.from_numpy(((scaled - mean) / std).transpose(0, 3, 1, 2).copy())}

    def _tiles(self, picture: Image.Image, layout: PictureViews, side: int) -> list[Image.Image]:
        """Returns the views of a picture that are shown, each a square of the encoder's own size."""
        cut = any(isinstance(view, tuple) for view in layout.shown)
        sheet = self._filled(picture, layout.rows, layout.columns, side) if cut else None
        tiles = []
        for view in layout.shown:
            if view == "overview":
                tiles.append(self._filled(picture, 1, 1, side))
            elif isinstance(view, tuple) and sheet is not None:
                row, column = view
                tiles.append(sheet.crop((column * side, row * side, (column + 1) * side, (row + 1) * side)))
        return tiles

    def _filled(self, picture: Image.Image, rows: int, columns: int, side: int) -> Image.Image:
        canvas = fitted_canvas(*picture.size, rows=rows, columns=columns, views=self.views)
        if (canvas.width, canvas.height) != picture.size:
            sheet = Image.new("RGB", (canvas.width, canvas.height), tuple(self.views["colour"]))
            sheet.paste(picture, (canvas.left, canvas.top))
            picture = sheet
        return picture.resize((columns * side, rows * side), _BICUBIC)

    def _natives(
        self, name: str, pictures: Sequence[Image.Image], layouts: Sequence[PictureViews]
    ) -> dict[str, torch.Tensor]:
        entry, native = self.encoders[name], self.natives[name]
        side = int(self.views["size"])
        views = [
            v for picture, layout in zip(pictures, layouts, strict=True) for v in self._tiles(picture, layout, side)
        ]
        if "inputs" in entry:
            return native_inputs(native, views, {"modality": "image", "inputs": entry["inputs"]}, name=name)
        return native(views)

    def load_natives(self, load: Any) -> None:
        """Loads the processors that encoders bring.

        Args:
            load: Takes an encoder's name and its entry, and returns its processor.
        """
        self.natives = {name: load(name, self.encoders[name]) for name in self.native_names}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Writes the settings, and every encoder's own processor in a folder of its own."""
        for name, native in self.natives.items():
            getattr(native, "processor", native).save_pretrained(Path(save_directory) / name)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns what ``preprocessor_config.json`` holds; the encoders' processors have folders of their own."""
        return {
            "processor_class": self.processor_class,
            "views": self.views,
            "encoders": self.encoders,
            "view_tokens": self.view_tokens,
            "frames": self.frames,
        }


def _opened(item: Any) -> Image.Image:
    """Returns a picture in three colours; ``item`` is a path, a picture, or an array of 0 to 255."""
    if isinstance(item, np.ndarray | torch.Tensor):
        item = Image.fromarray(np.asarray(item, dtype=np.uint8))
    return load_image(item).convert("RGB")
