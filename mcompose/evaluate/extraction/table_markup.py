r"""Tables in LaTeX and in Markdown.

LaTeX: ``tabular`` and its kind, with rules, comments, ``\multicolumn``, ``\multirow`` and ``\makecell``; emphasis is
dropped, formulas stay as they are written. No macro is expanded: a table that defines its own has them as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from mcompose.evaluate.extraction.table import Cell, Table

__all__ = ["is_latex", "read_latex", "read_markdown"]

_BEGIN: Final = re.compile(r"\\begin\s*\{(tabular[xy*]?|longtable|array|tabu|tblr)\}")
_RULES: Final = re.compile(
    r"\\(?:hline|toprule|midrule|bottomrule|endhead|endfirsthead|endfoot|endlastfoot)\b(?:\[[^\]]*\])?"
    r"|\\(?:cline|cmidrule|specialrule|addlinespace)(?:\[[^\]]*\]|\([^)]*\)|\{[^}]*\})*"
)
_EMPHASIS: Final = re.compile(
    r"\\(?:textbf|textit|texttt|textsc|textrm|textsf|emph|underline|mbox|text|textsuperscript|textsubscript|bfseries|itshape|centering|small"
    r"|footnotesize|scriptsize|raggedright)\b\s*"
)
_PIECES: Final = re.compile(
    r"\\\\\*?(?:\s*\[[^\]]*\])?|\\tabularnewline\b|\\begin\s*\{[^}]*\}|\\end\s*\{[^}]*\}|\\.|[{}&]", re.DOTALL
)
_ESCAPED: Final = re.compile(r"\\([%&#_${}])")
_MARKED: Final = re.compile(r"(?<!\w)(\*\*|__|\*|_)(?=\S)(.+?)(?<=\S)\1(?!\w)")
_DASHES: Final = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")


def is_latex(text: str) -> bool:
    """Returns whether a text holds a LaTeX table.

    Args:
        text: Any text.

    Returns:
        True when one begins in it.
    """
    return _BEGIN.search(text) is not None


def read_latex(text: str) -> Table | None:
    r"""Rows of the first LaTeX table.

    Args:
        text: LaTeX; a table without its ``\end`` goes to the end.

    Returns:
        The rows, without those empty cells that a ``\multirow`` above covers; None when there is no table.
    """
    begin = _BEGIN.search(text)
    if begin is None:
        return None
    body = re.sub(r"(?<!\\)%.*", "", text[begin.end() :])
    arguments = 2 if begin[1] in {"tabularx", "tabulary", "tabular*"} else 1
    body = _RULES.sub(" ", _after_arguments(body, arguments))
    rows = [[_latex_cell(cell) for cell in row] for row in _latex_rows(body)]
    return _uncovered([row for row in rows if len(row) > 1 or row[0].text])


def read_markdown(text: str) -> Table | None:
    """Rows of the first Markdown table.

    Args:
        text: Lines with pipes; the second one is the rule under the header.

    Returns:
        The rows, the header first; None when there is no such rule.
    """
    lines = text.splitlines()
    for at, line in enumerate(lines[1:], start=1):
        if "|" in line + lines[at - 1] and "-" in line and _DASHES.fullmatch(line) and "|" in lines[at - 1]:
            below = lines[at + 1 :]
            end = next((i for i, one in enumerate(below) if "|" not in one), len(below))
            return tuple(map(_markdown_row, [lines[at - 1], *below[:end]]))
    return None


def _markdown_row(line: str) -> tuple[Cell, ...]:
    inner = re.sub(r"(?<!\\)\|$", "", line.strip().removeprefix("|"))
    cells = (re.sub(r"<br\s*/?>", " ", cell).replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner))
    return tuple(Cell(" ".join(_MARKED.sub(r"\2", cell).replace("`", "").split())) for cell in cells)


def _after_arguments(body: str, count: int) -> str:
    """Behind ``[t]`` and so many ``{...}``."""
    body = re.sub(r"^\s*\[[^\]]*\]", "", body)
    for _ in range(count):
        given = _argument(body)
        body = given[1] if given else body
        body = re.sub(r"^\s*\[[^\]]*\]", "", body)
    return body


def _argument(text: str) -> tuple[str, str] | None:
    """Returns the braces that a text begins with, and what follows them."""
    text = text.lstrip()
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if depth == 0 and match.start() > 0:
            return None
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth <= 0:
            return (text[1 : match.start()], text[match.end() :]) if match[0] == "}" else None
    return None


def _latex_rows(body: str) -> Iterator[list[str]]:
    r"""Cells of each row: splits at ``\\`` and ``&`` outside braces and environments, and ends with the table."""
    row, start, depth = [], 0, 0
    for match in _PIECES.finditer(body):
        piece = match[0]
        opens, closes = piece == "{" or piece.startswith("\\begin"), piece == "}" or piece.startswith("\\end")
        if closes and depth == 0:
            body = body[: match.start()]
            break
        depth += opens - closes
        ends = piece.startswith(("\\\\", "\\tabularnewline"))
        if depth == 0 and (ends or piece == "&"):
            row.append(body[start : match.start()])
            start = match.end()
            if ends:
                yield row
                row = []
    yield [*row, body[start:]]


def _latex_cell(text: str) -> Cell:
    colspan = rowspan = 1
    while match := re.match(r"\s*\\(multicolumn|multirow)\s*", text):
        given = _span(text[match.end() :])
        if given is None:
            break
        count, text = given
        colspan, rowspan = (count, rowspan) if match[1] == "multicolumn" else (colspan, count)
    return Cell(_latex_text(text), colspan, rowspan)


def _span(text: str) -> tuple[int, str] | None:
    """Returns the number and the text of ``[pos]{number}[struts]{width or columns}[shift]{text}``."""
    found = []
    for _ in range(3):
        bare = re.sub(r"^\s*(?:\[[^\]]*\])?\s*", "", text)
        given = ("*", bare[1:]) if bare.startswith("*") else _argument(bare)
        if given is None:
            return None
        found.append(given[0])
        text = given[1]
    number = found[0].strip().lstrip("-")
    return (max(int(number), 1), found[2] + text) if re.fullmatch(r"\d{1,4}", number, re.ASCII) else None


def _latex_text(text: str) -> str:
    while match := re.search(r"\\(?:makecell|shortstack|thead)\s*(?:\[[^\]]*\])?", text):
        given = _argument(text[match.end() :])
        inner, rest = given or ("", text[match.end() :])
        text = text[: match.start()] + re.sub(r"\\\\\*?(?:\[[^\]]*\])?", " ", inner) + rest
    formulas = re.split(r"(?<!\\)(\$[^$]*\$)", text)
    plain = [part if i % 2 else _plain(part) for i, part in enumerate(formulas)]
    return " ".join("".join(plain).split())


def _plain(text: str) -> str:
    text = re.sub(r"(?<!\\)[{}]", "", _EMPHASIS.sub("", text).replace("~", " "))
    return _ESCAPED.sub(r"\1", text)


def _uncovered(rows: list[list[Cell]]) -> Table:
    """Without the empty cells that LaTeX wants under a cell of several rows."""
    covered: dict[int, int] = {}
    made = []
    for row in rows:
        kept, column, below = [], 0, {c: n - 1 for c, n in covered.items() if n > 1}
        for cell in row:
            if covered.get(column, 0) > 0 and not cell.text:
                column += cell.colspan
                continue
            kept.append(cell)
            if cell.rowspan > 1:
                below |= dict.fromkeys(range(column, column + cell.colspan), cell.rowspan - 1)
            column += cell.colspan
        made.append(tuple(kept))
        covered = below
    return tuple(made)
