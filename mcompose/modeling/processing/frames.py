"""Processor of a video source without torchvision: a clip laid out as one picture, a patch per three frames.

transformers' own video processors need torchvision. This one needs numpy and Pillow, for small grey clips. Three
frames in a row become the three channels of a tile, and the tiles, in order of time, fill a square picture. With a
patch as large as a tile, an ordinary vision encoder attends over time.

Paper: tubelet embedding, ViViT, arXiv 2103.15691 (section 3.2).
Differs: a tubelet spans whole frames, and its place in time is a place in a picture.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

__all__ = ["FramesProcessor", "read_frames"]

CHANNELS = 3
VIDEO_TYPE = 2  # in mm_token_type_ids, as transformers numbers it


def read_frames(clip: Any) -> np.ndarray:
    """Reads a clip as grey frames.

    Args:
        clip: Array-like (frames, height, width) or (frames, height, width, 3) of 0 to 255; a list of Pillow images; or
            the path of an animated picture (GIF, APNG, WebP).

    Returns:
        float32 (frames, height, width).

    Raises:
        ValueError: The clip has another shape or no frames.
    """
    if isinstance(clip, str | PathLike):
        with Image.open(clip) as opened:
            clip = [frame.convert("L") for frame in ImageSequence.Iterator(opened)]
    if isinstance(clip, list | tuple) and clip and isinstance(clip[0], Image.Image):
        clip = np.stack([np.asarray(frame.convert("L")) for frame in clip])
    frames = np.asarray(clip, dtype=np.float32)
    if frames.ndim == 4 and frames.shape[-1] == 3:
        frames = frames @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    if frames.ndim != 3 or not frames.size:
        raise ValueError(f"A clip has the shape (frames, height, width) or (..., 3), not {frames.shape}.")
    return frames


class FramesProcessor(ProcessorMixin):
    """Prepares text and clips for a video source.

    Args:
        tokenizer: The language model's tokenizer; it must know the placeholder as one token.
        video_token: The placeholder.
        grid: Tiles along each side of the picture; the encoder sees 3 * grid * grid frames. Longer clips are thinned
            evenly, shorter ones padded with their last frame.
        side: Height and width that frames are resized to: the encoder's patch size.
        num_video_tokens: Tokens that one clip becomes: a patch each, and the encoder's class token.
        chat_template: Optional chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        video_token: str = "<video>",  # noqa: S107
        grid: int = 3,
        side: int = 16,
        num_video_tokens: int = 10,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.video_token = video_token
        self.video_token_id = tokenizer.convert_tokens_to_ids(video_token)
        self.grid = grid
        self.side = side
        self.num_video_tokens = num_video_tokens
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(self, text: str | list[str] | None = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """Expands placeholders and stacks clips.

        Args:
            text: One text or a batch of them.
            videos: A list of clips in the order of their placeholders over the whole batch; see ``read_frames``.
            kwargs: Passed to the tokenizer, such as ``padding``; ``return_mm_token_type_ids`` adds the types.

        Returns:
            ``input_ids``, ``attention_mask``, and ``pixel_values_videos`` of shape (clips, 1, 3, grid * side,
            grid * side).

        Raises:
            ValueError: The number of clips differs from the number of placeholders.
        """
        tensors = kwargs.pop("return_tensors", None)
        with_types = kwargs.pop("return_mm_token_type_ids", False)
        clips, replacements = self.process_videos(videos)
        data: dict[str, Any] = dict(clips)
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            found = sum(t.count(self.video_token) for t in texts)
            if found != len(replacements):
                raise ValueError(f"The text has {found} {self.video_token}, but {len(replacements)} clips came.")
            expanded = [t.replace(self.video_token, self.video_token * self.num_video_tokens) for t in texts]
            data |= dict(self.tokenizer(expanded, **kwargs))
            if with_types:
                data["mm_token_type_ids"] = [
                    [VIDEO_TYPE * (i == self.video_token_id) for i in ids] for ids in data["input_ids"]
                ]
        return BatchFeature(data, tensor_type=tensors)

    def process_videos(self, videos: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Clips without text.

        Args:
            videos: A list of clips, or of lists of clips (one per text); None for none.

        Returns:
            The model's inputs, and for each clip the text that its placeholder becomes.
        """
        if videos is None:
            return {}, []
        stacked = np.stack([self._prepare(read_frames(clip)) for clip in _flat(videos)])
        tensor = torch.from_numpy(stacked).unsqueeze(1)
        return {"pixel_values_videos": tensor}, [self.video_token * self.num_video_tokens] * len(stacked)

    def _prepare(self, frames: np.ndarray) -> np.ndarray:
        count, wanted = len(frames), CHANNELS * self.grid * self.grid
        if count >= wanted:
            frames = frames[(np.arange(wanted) * count) // wanted]
        else:
            frames = frames[np.minimum(np.arange(wanted), count - 1)]
        if frames.shape[1:] != (self.side, self.side):
            size = (self.side, self.side)
            resized = [Image.fromarray(f).resize(size, Image.Resampling.BILINEAR) for f in frames]
            frames = np.stack([np.asarray(f) for f in resized])
        tiles = (frames / 127.5 - 1.0).astype(np.float32)
        tiles = tiles.reshape(self.grid, self.grid, CHANNELS, self.side, self.side)
        return tiles.transpose(2, 0, 3, 1, 4).reshape(CHANNELS, self.grid * self.side, self.grid * self.side)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs."""
        return [*self.tokenizer.model_input_names, "pixel_values_videos"]


def _flat(videos: Any) -> list[Any]:
    """Clips without the nesting by text that transformers' own processors accept too."""
    flat: list[Any] = []
    for entry in videos:
        first = entry[0] if isinstance(entry, list | tuple) and entry else None
        is_row = isinstance(first, str | PathLike) or getattr(first, "ndim", 0) >= 3
        flat += entry if is_row else [entry]
    return flat
