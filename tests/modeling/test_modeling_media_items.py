"""What people pass as media, however nested, becomes one list of items."""

from pathlib import Path

import numpy as np
import pytest

from mcompose.modeling.processing.items import media_items

PHOTO, GREY, CLIP = np.zeros((8, 9, 3), np.uint8), np.zeros((6, 8, 9)), np.zeros((6, 8, 9, 3), np.uint8)
WAVE, CLOUD = np.zeros(50, np.float32), np.zeros((20, 3), np.float32)


@pytest.mark.parametrize(
    ("modality", "value", "shapes"),
    [
        ("image", PHOTO, [(8, 9, 3)]),
        ("image", [[PHOTO], [], [PHOTO, PHOTO[:4]]], [(8, 9, 3), (8, 9, 3), (4, 9, 3)]),
        ("image", np.stack([PHOTO, PHOTO]), [(8, 9, 3)] * 2),
        ("video", CLIP, [(6, 8, 9, 3)]),
        ("video", GREY, [(6, 8, 9)]),
        ("video", [GREY, GREY[:4]], [(6, 8, 9), (4, 8, 9)]),
        ("video", [PHOTO, PHOTO], [2]),
        ("video", [[PHOTO, PHOTO], [PHOTO]], [2, 1]),
        ("video", [[CLIP], [CLIP]], [(6, 8, 9, 3)] * 2),
        ("audio", WAVE, [(50,)]),
        ("audio", [0.5, 0.25], [2]),
        ("audio", [[WAVE], [WAVE, WAVE]], [(50,)] * 3),
        ("audio", np.stack([WAVE, WAVE]), [(50,)] * 2),
        ("points", CLOUD, [(20, 3)]),
        ("points", [[0.0, 1.0, 2.0]], [1]),
        ("points", np.stack([CLOUD, CLOUD]), [(20, 3)] * 2),
        ("points", [], []),
        ("points", None, []),
    ],
)
def test_media_are_read_into_items(modality, value, shapes):
    assert [getattr(item, "shape", None) or len(item) for item in media_items(modality, value)] == shapes


@pytest.mark.parametrize(
    ("modality", "value"),
    [
        ("image", 5),
        ("audio", np.float32(1.0)),
        ("image", WAVE),
        ("audio", [{"array": WAVE, "sampling_rate": 16000}]),  # its keys would be read as two paths
    ],
)
def test_what_holds_no_media_is_refused(modality, value):
    with pytest.raises(ValueError, match=f"not something that {modality} items"):
        media_items(modality, value)


def test_paths_are_items():
    assert media_items("image", [Path("a.png"), "b.png"]) == ["a.png", "b.png"]
    assert media_items("video", "a.gif") == ["a.gif"]
