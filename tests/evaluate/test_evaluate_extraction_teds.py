"""TEDS and its table readers, against trees counted by hand and against another implementation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_recognition_metric import TEDS

from mcompose.evaluate.extraction import BadReferenceError, read_table, teds

HTML = "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>dd</td></tr></table>"  # 1 + 2 + 4 nodes
LATEX = r"\begin{tabular}{ll} a & b \\ c & dd \\ \end{tabular}"
MARKDOWN = "| a | b |\n|---|---|\n| c | dd |"


def texts(table):
    return [[(cell.text, cell.colspan, cell.rowspan) for cell in row] for row in table]


def plain(table):
    return [[cell.text for cell in row] for row in table]


@pytest.mark.parametrize(
    "text", [HTML, LATEX, MARKDOWN, f"Here it is:\n```html\n{HTML}\n```", f"See.\n\n{MARKDOWN}\n\nSo."]
)
def test_evaluate_tables_of_every_form_are_the_same(text) -> None:
    assert plain(read_table(text)) == [["a", "b"], ["c", "dd"]]
    assert teds(text, HTML) == teds(HTML, text) == 1.0


@pytest.mark.parametrize(
    ("output", "whole", "structure"),
    [
        (HTML, 1, 1),
        (HTML.replace("dd", "dx"), 1 - 0.5 / 7, 1),  # one of two characters
        (HTML.replace("dd", ""), 1 - 1 / 7, 1),
        (HTML.replace("<td>b</td>", ""), 1 - 1 / 7, 1 - 1 / 7),  # one node of seven
        (HTML.replace("<td>b</td>", '<td colspan="2">b</td>'), 1 - 1 / 7, 1 - 1 / 7),
        ("<table><tr><td>a</td><td>b</td></tr></table>", 1 - 3 / 7, 1 - 3 / 7),  # a row and its two cells
        (HTML.replace("</tr></table>", "<td>e</td></tr></table>"), 1 - 1 / 8, 1 - 1 / 8),
        ("<table></table>", 0, 0),
    ],
)
def test_evaluate_teds_by_hand(output, whole, structure) -> None:
    assert teds(output, HTML) == pytest.approx(whole)
    assert teds(HTML, output) == pytest.approx(whole) if whole else True
    assert teds(output, HTML, structure_only=True) == pytest.approx(structure)


def test_evaluate_teds_leaves_out_what_only_html_says() -> None:
    headed = (
        "<table border='1'><thead><tr><th><b>a</b></th><th> b\n</th></tr></thead><!-- x --><tbody><tr><td>c</td>"
        "<td>d<i>d</i></td></tr></tbody></table>"
    )
    assert teds(headed, HTML) == 1.0
    assert teds(headed, HTML, paper=True) < 0.6  # two levels more, two th that are no td, and markup
    assert teds(headed.replace(">a<", ">x<"), headed, paper=True) == 1.0  # texts of th are not compared there


@pytest.mark.parametrize(
    "text", ["", " ", "no table", "<table>", "<td", r"\begin{tabular}{ll}", "a | b", "|---|", "\0"]
)
def test_evaluate_what_is_no_table(text) -> None:
    assert read_table(text) is None
    assert teds(text, HTML) == 0.0
    with pytest.raises(BadReferenceError, match="holds no table"):
        teds(HTML, text)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("<table><tr><td>a<td>b<tr><td>c", [["a", "b"], ["c"]]),  # nothing closed
        ("<td>a</td><td>b</td>", None),  # no table element
        ("<table><td>a</td><td>b</td></table>", [["a", "b"]]),  # no row
        ("<table><tr><td>a<br>b</td><td>x<sup>2</sup> &amp; &#20013;</td></tr></table>", [["a b", "x2 & 中"]]),
        ("<table><tr><td><table><tr><td>in</td></tr></table></td><td>out</td></tr></table>", [["in", "out"]]),
        ("<table><tr><td>1</td></tr></table><table><tr><td>2</td></tr></table>", [["1"]]),
        ("<?xml version='1.0' encoding='latin-1'?><table><tr><td>é</td></tr></table>", [["é"]]),
        ("<table><tr><td>\ud800</td></tr></table>", [["?"]]),  # half a surrogate
    ],
)
def test_evaluate_html_as_models_write_it(text, rows) -> None:
    table = read_table(text)
    assert (table and plain(table)) == rows


def test_evaluate_html_spans_are_numbers_or_one() -> None:
    cells = "<td colspan=' 2 ' rowspan=3>a</td><td colspan='x' rowspan='-1'>b</td><td colspan=0>c</td>"
    assert texts(read_table(f"<table><tr>{cells}</tr></table>")) == [[("a", 2, 3), ("b", 1, 1), ("c", 1, 1)]]


def test_evaluate_latex_as_it_is_written() -> None:
    latex = r"""\begin{table}[h] \caption{A & B} \begin{tabular}[t]{l|c@{}p{2cm}} \toprule % a comment & more
     \textbf{a} & {\bf b} \& c & $\frac{1}{2}$ \\ \cmidrule(lr){2-3}
     \multicolumn{2}{c}{wide} & 5\% \\[2pt]
     \multirow{2}{*}{two} & 1~km & 2 \\
     & 3\textsuperscript{2} & \makecell[l]{4 \\ 5} \\ \hline
    \end{tabular} after & that \\ \end{table}"""
    assert texts(read_table(latex)) == [
        [("a", 1, 1), (r"\bf b & c", 1, 1), (r"$\frac{1}{2}$", 1, 1)],
        [("wide", 2, 1), ("5%", 1, 1)],
        [("two", 1, 2), ("1 km", 1, 1), ("2", 1, 1)],
        [("32", 1, 1), ("4 5", 1, 1)],
    ]


@pytest.mark.parametrize(
    ("latex", "rows"),
    [
        (r"\begin{tabular}{ll} a & b \\ c", [[("a", 1, 1), ("b", 1, 1)], [("c", 1, 1)]]),  # cut off
        (r"\begin{tabularx}{\textwidth}{lX} a & b \end{tabularx}", [[("a", 1, 1), ("b", 1, 1)]]),
        (r"\begin{tabular}{l} \multicolumn{x}{c}{a} \\ \end{tabular}", [[(r"\multicolumnxca", 1, 1)]]),
        (
            r"\begin{tabular}{ll}\multicolumn{2}{c}{\multirow{2}*{a}} & b \\ & & c \\ \end{tabular}",
            [[("a", 2, 2), ("b", 1, 1)], [("c", 1, 1)]],
        ),
        (
            r"\begin{tabular}{l} \begin{tabular}{l} x \\ y \end{tabular} \\ z \end{tabular}",
            [[(r"\begintabularl x \\ y \endtabular", 1, 1)], [("z", 1, 1)]],  # a table in a cell stays text
        ),
    ],
)
def test_evaluate_latex_at_its_edges(latex, rows) -> None:
    assert texts(read_table(latex)) == rows


def test_evaluate_markdown_as_it_is_written() -> None:
    markdown = "Text | with a pipe\n\na | **b**\n:-- | :-:\n`1` | 2\\|3<br>4\n5\nafter | all"
    assert plain(read_table(markdown)) == [["a", "b"], ["1", "2|3 4"]]
    assert plain(read_table("| a |\n| - |\n| 1 |")) == [["a"], ["1"]]
    marked = "|_a_|__b__|*c* d|\n|-|-|-|\n|a_b_c|2*3*4|* |"
    assert plain(read_table(marked)) == [["a", "b", "c d"], ["a_b_c", "2*3*4", "*"]]


CELLS = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["", "a", "ab", "-1", "中", "<b>a</b>"]), st.integers(1, 2)), min_size=1, max_size=3
    ),
    min_size=1,
    max_size=3,
)


def as_html(rows, tag="td"):
    made = "".join("<tr>" + "".join(f"<{tag} colspan='{n}'>{t}</{tag}>" for t, n in row) + "</tr>" for row in rows)
    return f"<html><body><table>{made}</table></body></html>"


@settings(deadline=None, max_examples=60)
@given(CELLS, CELLS)
def test_evaluate_teds_agrees_with_another_implementation(left, right) -> None:
    output, reference = as_html(left), as_html(right)
    for structure_only in (False, True):
        theirs = TEDS(structure_only=structure_only)(output, reference)
        assert teds(output, reference, structure_only=structure_only, paper=True) == pytest.approx(theirs)
        ours = teds(output, reference, structure_only=structure_only)
        if structure_only or "<b>" not in output + reference:
            assert ours == pytest.approx(theirs)
        assert ours == pytest.approx(teds(reference, output, structure_only=structure_only))
        assert 0 <= ours <= 1
    assert teds(output, output) == teds(as_html(left, "th"), output) == 1.0


def test_evaluate_published_teds_agrees_on_heads_bodies_and_markup() -> None:
    one = "<thead><tr><td><b>x</b> y</td></tr></thead><tbody><tr><td>1</td></tr></tbody>"
    two = "<thead><tr><th>x y</th></tr></thead><tr><td>1 <i>2</i></td></tr>"
    one, two = (f"<html><body><table>{rows}</table></body></html>" for rows in (one, two))
    for structure_only in (False, True):
        theirs = TEDS(structure_only=structure_only)(one, two)
        assert 0 < theirs < 1
        assert teds(one, two, structure_only=structure_only, paper=True) == pytest.approx(theirs)


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "<table>",
                "<tr>",
                "<td",
                ">",
                "</td>",
                "|",
                "-",
                "\n",
                "&",
                "\\\\",
                "\\begin{tabular}",
                "{",
                "}",
                "x",
                "\\multirow",
                "\0",
            ]
        ),
        max_size=14,
    )
)
def test_evaluate_teds_never_fails_on_an_output(pieces) -> None:
    output = "".join(pieces)
    for paper in (False, True):
        assert 0 <= teds(output, HTML, paper=paper) <= 1


def test_evaluate_deep_nesting_is_no_failure() -> None:
    deep = "<table>" + "<tr><td><table>" * 3000 + "x"
    for paper in (False, True):
        assert 0 <= teds(deep, HTML, paper=paper) < 1
    assert 0 <= teds(r"\begin{tabular}{l}" + "{" * 5000 + "x", HTML) < 1
