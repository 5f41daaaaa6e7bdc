"""Clips and clouds on their way into a batch: from a source's own processor, and in a composition."""

import numpy as np
import pytest
import torch
from align_data_samples import sample
from composed_folders import tiny_tokenizer
from PIL import Image

from mcompose.align.data.collator import Collator
from mcompose.align.data.labels import check_labels
from mcompose.errors import RequestError
from mcompose.media import read_media
from mcompose.modeling.points.processing import PointsProcessor
from mcompose.modeling.processing.composed import add_placeholders, build_processor
from mcompose.modeling.processing.frames import FramesProcessor


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 8, 8), dtype=np.uint8)
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, optimize=False)
    np.save(tmp_path / "a.npy", frames)
    np.save(tmp_path / "c.npy", rng.normal(size=(30, 3)).astype(np.float32))
    return tmp_path, frames


def part(modality, path):
    return {"type": modality, "path": str(path)}


def test_clips_are_the_same_from_a_picture_and_from_an_array(files):
    folder, frames = files
    wanted = np.repeat(frames[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_media(folder / "a.gif", "video"), wanted)
    np.testing.assert_array_equal(read_media((folder / "a.npy").read_bytes(), "video"), wanted)
    with pytest.raises(RequestError, match=r"c.npy cannot be read: a video must have the shape"):
        read_media(folder / "c.npy", "video")
    with pytest.raises(RequestError, match=r"a.npy cannot be read: a point cloud must have the shape"):
        read_media(folder / "a.npy", "points")


def test_sources_of_clips_and_of_clouds_can_be_trained_alone(files):
    folder, _ = files
    clips = FramesProcessor(tiny_tokenizer("<video>"), grid=2, side=8, num_video_tokens=5)
    clouds = PointsProcessor(tiny_tokenizer("<points>"), num_points=16, num_points_tokens=3)
    for processor, item, tokens in (
        (clips, part("video", folder / "a.gif"), 5),
        (clouds, part("points", folder / "c.npy"), 3),
    ):
        shown = sample(("user", item, "\nwhat is it ?"), ("assistant", "two"))
        plain = sample(("user", "what is it ?"), ("assistant", "two"))
        collator = Collator(processor, max_length=30)
        batch = collator([plain, shown])
        modality = item["type"]
        types = batch["mm_token_type_ids"]
        assert (types != 0).sum(-1).tolist() == [0, tokens]
        path = next(iter(shown.media()[modality]))
        name = {"video": "videos"}.get(modality, modality)
        own = processor(text=f"<{modality}>", **{name: [read_media(path, modality)]}, return_tensors="pt")
        for key in set(own) - {"input_ids", "attention_mask", "token_type_ids"}:
            assert torch.equal(batch[key], own[key])
        (seen,) = check_labels([shown], collator)
        assert seen.media_tokens == {modality: tokens}
        assert seen.learnt == ("two</s>",)


def test_a_composition_takes_clips_and_clouds_in_one_sample(files):
    folder, _ = files
    tokenizer = tiny_tokenizer()
    add_placeholders(tokenizer, ["video", "points"])
    clips = FramesProcessor(tiny_tokenizer("<video>"), grid=2, side=8, num_video_tokens=5)
    clouds = PointsProcessor(tiny_tokenizer("<points>"), num_points=16, num_points_tokens=3)
    processor = build_processor(
        tokenizer,
        {
            "moves": {"model_type": "llava", "modalities": ["video"]},
            "feels": {"model_type": "mcompose_points", "modalities": ["points"]},
        },
        processors={"moves": clips, "feels": clouds},
    )
    both = sample(
        ("user", part("points", folder / "c.npy"), " and ", part("video", folder / "a.gif")), ("assistant", "two")
    )
    (seen,) = check_labels([both], Collator(processor, max_length=30))
    assert seen.media_tokens == {"video": 5, "points": 3}
    assert seen.learnt == ("two</s>",)
