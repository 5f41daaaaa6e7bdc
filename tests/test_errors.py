"""What a library says is quoted as the end of one sentence."""

from __future__ import annotations

import pytest

from mcompose.errors import first_line


@pytest.mark.parametrize(
    ("error", "quoted"),
    [
        (ValueError("It broke."), "It broke"),
        (ValueError("It broke...\nmore of it"), "It broke"),
        (OSError("\n\n  No  such\tfile \n second"), "No such file"),
        (
            ValueError("Validation error for 'x':\n    TypeError: not an int\nthird"),
            "Validation error for 'x': TypeError: not an int",
        ),
        (ValueError("Nothing follows:"), "Nothing follows:"),
        (ValueError(), "ValueError"),
        (KeyError("name"), "'name'"),
        (RuntimeError(" \n "), "RuntimeError"),
        ("a text.\nof two lines", "a text"),
    ],
)
def test_the_first_line_is_quoted(error, quoted):
    assert first_line(error) == quoted


def test_a_long_line_is_cut():
    assert first_line(ValueError("x" * 1000)) == "x" * 200
