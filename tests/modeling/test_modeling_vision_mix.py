"""The views of pictures: grids, fillings and empty tiles, counted by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from mcompose.modeling.vision_mix.encoders import ViewVectors, on_grid
from mcompose.modeling.vision_mix.processing import VisionMixProcessor
from mcompose.modeling.vision_mix.views import Canvas, fitted_canvas, view_layout

VIEWS = {
    "size": 10, "tiles": "none", "max_tiles": 6, "padding": "square", "align": "center", "overview": "first",
    "skip": True,
}  # fmt: skip


def views(**changes):
    return {**VIEWS, **changes}


@pytest.mark.parametrize(
    ("size", "changes", "grid", "shown"),
    [
        ((30, 20), {}, (1, 1), ["overview"]),
        ((30, 30), {"tiles": "2x2"}, (2, 2), ["overview", (0, 0), (0, 1), (1, 0), (1, 1)]),
        ((30, 30), {"tiles": "2x2", "overview": "last"}, (2, 2), [(0, 0), (0, 1), (1, 0), (1, 1), "overview"]),
        ((30, 30), {"tiles": "2x2", "overview": "none"}, (2, 2), [(0, 0), (0, 1), (1, 0), (1, 1)]),
        # Centred filling leaves no tile of 2 x 2 empty; from the corner it does at 2:1 and not before.
        ((400, 10), {"tiles": "2x2"}, (2, 2), ["overview", (0, 0), (0, 1), (1, 0), (1, 1)]),
        ((40, 20), {"tiles": "2x2", "align": "corner"}, (2, 2), ["overview", (0, 0), (0, 1), None, None]),
        ((40, 21), {"tiles": "2x2", "align": "corner"}, (2, 2), ["overview", (0, 0), (0, 1), (1, 0), (1, 1)]),
        ((20, 40), {"tiles": "2x2", "align": "corner"}, (2, 2), ["overview", (0, 0), None, (1, 0), None]),
        ((40, 20), {"tiles": "2x2", "align": "corner", "skip": False}, (2, 2),
         ["overview", (0, 0), (0, 1), (1, 0), (1, 1)]),
        # 3 x 3 centred: the outer rows are empty from 3:1 on.
        ((30, 10), {"tiles": "3x3"}, (3, 3), ["overview", None, None, None, (1, 0), (1, 1), (1, 2), None, None, None]),
        ((40, 20), {"tiles": "2x2", "padding": "none", "align": "corner"}, (2, 2),
         ["overview", (0, 0), (0, 1), (1, 0), (1, 1)]),
        ((40, 20), {"tiles": "auto"}, (1, 2), ["overview", (0, 0), (0, 1)]),
        ((20, 60), {"tiles": "auto"}, (3, 1), ["overview", (0, 0), (1, 0), (2, 0)]),
        ((20, 20), {"tiles": "auto", "max_tiles": 4}, (2, 2), ["overview", (0, 0), (0, 1), (1, 0), (1, 1)]),
        ((12, 12), {"tiles": "auto", "max_tiles": 4}, (1, 1), ["overview"]),  # fills less than half of 2 x 2
    ],
)  # fmt: skip
def test_views_of_a_picture(size, changes, grid, shown):
    found = view_layout(*size, views(**changes))
    assert (found.rows, found.columns) == grid
    assert list(found.shown) == shown


@pytest.mark.parametrize(
    ("size", "grid", "align", "canvas"),
    [
        ((30, 20), (1, 1), "center", Canvas(30, 30, 0, 5)),
        ((20, 30), (2, 2), "center", Canvas(30, 30, 5, 0)),
        ((20, 31), (1, 1), "corner", Canvas(31, 31, 0, 0)),
        ((40, 20), (1, 2), "center", Canvas(40, 20, 0, 0)),
        ((40, 10), (1, 2), "center", Canvas(40, 20, 0, 5)),
        ((10, 40), (1, 2), "center", Canvas(80, 40, 35, 0)),
    ],
)
def test_the_canvas_is_the_smallest_of_its_proportions(size, grid, align, canvas):
    assert fitted_canvas(*size, rows=grid[0], columns=grid[1], views=views(align=align)) == canvas


def test_pixels_are_those_of_the_encoders_own_processor():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28, 3), np.uint8))
    native = CLIPImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14})
    entry = {"size": 14, "mean": native.image_mean, "std": native.image_std, "scale": 1 / 255, "input": "pixel_values"}
    ours = VisionMixProcessor(views(colour=[0, 0, 0]), {"eye": entry}, 3)
    texts, made = ours.expand("image", [picture])
    assert texts == ["<image>" * 3]
    expected = native(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made["eye__pixel_values"], expected, atol=1e-6, rtol=0)


def test_a_smaller_encoder_sees_tiles_of_a_smaller_copy():
    """DINOv2 at half of the tile's size: tiles of the canvas resized to twice its size."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8))
    entry = {"size": 8, "mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1.0, "input": "pixel_values"}
    made = VisionMixProcessor(views(tiles="2x2", colour=[0, 0, 0]), {"eye": entry}, 1).expand("image", [picture])[1]
    copy = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC), np.float32).transpose(2, 0, 1)
    expected = [copy[:, :8, :8], copy[:, :8, 8:], copy[:, 8:, :8], copy[:, 8:, 8:]]
    assert np.array_equal(made["eye__pixel_values"][1:], np.stack(expected))


def test_a_map_meets_another_on_one_grid():
    x = torch.arange(4.0).reshape(1, 4, 1)
    small = ViewVectors(x, None, (2, 2))
    enlarged = on_grid(small, 4, class_token=True)[0, :, 0].tolist()
    assert enlarged == [1.5, 0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    kept = ViewVectors(x, torch.tensor([[9.0]]), (2, 2))
    assert on_grid(kept, 2, class_token=True)[0, :, 0].tolist() == [9, 0, 1, 2, 3]
    assert on_grid(kept, 1, class_token=False)[0, :, 0].tolist() == [1.5]
    with pytest.raises(ValueError, match="no grid"):
        on_grid(ViewVectors(x), 2, class_token=False)
