"""A table out of HTML, LaTeX or Markdown."""

from __future__ import annotations

import re

from mcompose.evaluate.extraction.table import Table
from mcompose.evaluate.extraction.table_html import read_html
from mcompose.evaluate.extraction.table_markup import is_latex, read_latex, read_markdown

__all__ = ["read_table"]


def read_table(text: str) -> Table | None:
    """Returns the first table in a text.

    Args:
        text: HTML, LaTeX (``tabular`` and its kind) or Markdown, with anything around it.

    Returns:
        Its rows; None when the text holds no table with a cell.
    """
    if re.search(r"<(?:table|tr|td|th)\b", text, re.IGNORECASE):
        rows = read_html(text)
    elif is_latex(text):
        rows = read_latex(text)
    else:
        rows = read_markdown(text)
    return rows if rows and any(rows) else None
