"""Boxes and points of wide, tall and square pictures as fractions of the padded square, by hand and both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcompose.errors import RequestError
from mcompose.square import Square, read_numbers, write_numbers

BY_HAND = [
    # 200 x 100: side 200, 50 rows of filling above.
    (Square(200, 100), (20, 10, 100, 100), (0.1, 0.3, 0.5, 0.75)),
    (Square(200, 100, "corner"), (20, 10, 100, 100), (0.1, 0.05, 0.5, 0.5)),
    # 100 x 400: side 400, 150 columns of filling on the left.
    (Square(100, 400), (0, 0, 100, 400), (0.375, 0.0, 0.625, 1.0)),
    (Square(100, 400, "corner"), (0, 0, 100, 400), (0.0, 0.0, 0.25, 1.0)),
    (Square(50, 50), (5, 10, 25, 50), (0.1, 0.2, 0.5, 1.0)),
    (Square(50, 50, "corner"), (5, 10, 25, 50), (0.1, 0.2, 0.5, 1.0)),
    # 101 - 100 = 1: half a pixel of filling cannot be pasted, so the picture begins at 0.
    (Square(101, 100), (50.5, 50), (0.5, 50 / 101)),
]


@pytest.mark.parametrize(("square", "pixels", "fractions"), BY_HAND)
def test_pixels_and_fractions_by_hand_both_ways(square, pixels, fractions):
    assert square.fractions(pixels) == pytest.approx(fractions)
    assert square.pixels(fractions) == pytest.approx(pixels)


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(["center", "corner"]),
    st.lists(st.floats(0, 1), min_size=2, max_size=2),
)  # fmt: skip
def test_there_and_back_for_any_picture(width, height, align, place):
    square = Square(width, height, align)
    pixels = (place[0] * width, place[1] * height)
    fractions = square.fractions(pixels)
    assert all(0 <= value <= 1 for value in fractions)
    assert square.pixels(fractions) == pytest.approx(pixels, abs=1e-6)
    # Two decimals are right to half a hundredth of the longest edge.
    (read,) = read_numbers(write_numbers(fractions))
    assert square.pixels(read) == pytest.approx(pixels, abs=0.005 * square.side + 1e-6)


def test_fractions_agree_with_the_canvas_that_mixed_encoders_paste_on():
    from mcompose.modeling.vision_mix.views import fitted_canvas

    for width, height in ((200, 100), (99, 300), (64, 64), (101, 100)):
        for align in ("center", "corner"):
            canvas = fitted_canvas(width, height, rows=1, columns=1, views={"padding": "square", "align": align})
            square = Square(width, height, align)
            assert (canvas.width, canvas.left, canvas.top) == (square.side, *square.offset)


def test_text_by_hand():
    assert write_numbers((0.474, 0.44, 0.486, 0.5)) == "[0.47, 0.44, 0.49, 0.50]"
    assert write_numbers((-0.001, 1.002)) == "[0.00, 1.00]"
    assert write_numbers(()) == "[]"
    assert write_numbers((1 / 3, 0.5), digits=4) == "[0.3333, 0.5000]"
    text = "A man [0.1, .2, 0.30,1] and [a dog] [] near [1 2]; [0.5, x] [[0.5, 0.6]] [1e3, 2]"
    assert read_numbers(text) == [(0.1, 0.2, 0.3, 1.0), (), (1.0, 2.0), (0.5, 0.6)]


def test_what_lies_outside_is_seen():
    square = Square(200, 100)
    assert square.holds((0, 0, 200.5, 100))
    assert not square.holds((0, 0, 100, 120))
    assert not square.holds((-30, 0))
    with pytest.raises(RequestError, match=r"A picture of 0 x 5 pixels has no place for a box\."):
        Square(0, 5)
