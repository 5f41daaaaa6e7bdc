"""SCRM against values worked out by hand, and the peculiarities of its published code."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcompose.evaluate.extraction import BadReferenceError, average_precision, scrm_similarity
from mcompose.evaluate.extraction.chart_tables import facts_of, read_grid
from mcompose.evaluate.extraction.scrm import TOLERANCES, exact_share, published_average_precision

LABEL = "Year\tSales\tCost\n2019\t100\t50\n2020\t120\t60"  # four facts
PUBLISHED = LABEL.replace("\t", "\\t").replace("\n", "\\n")
GRID = [["Year", "Sales", "Cost"], ["2019", "100", "50"], ["2020", "120", "60"]]


@pytest.mark.parametrize(
    "text",
    [
        LABEL,
        PUBLISHED,
        "Year,Sales,Cost\n2019,100,50\n2020,120,60\n",
        "| Year | Sales | Cost |\n|---|---:|:-:|\n| 2019 | 100 | 50 |\n| 2020 | 120 | 60 |",
        "TITLE | Money <0x0A> Year | Sales | Cost <0x0A> 2019 | 100 | 50 <0x0A> 2020 | 120 | 60",
        "Money of a firm\n" + LABEL,
        "```csv\nYear, Sales, Cost\n2019, 100, 50\n2020, 120, 60\n```",
        LABEL.replace("\n", "\r\n"),
    ],
)
def test_evaluate_chart_tables_in_any_usual_form(text) -> None:
    assert read_grid(text) == GRID
    assert scrm_similarity(text, LABEL) == 1.0


@pytest.mark.parametrize("text", ["", "   ", "hello", "a,b,c", "\t\n\t", "|", '"open\nquote', "a\\tb"])
def test_evaluate_what_is_no_chart_table(text) -> None:
    assert scrm_similarity(text, LABEL) == 0.0
    with pytest.raises(BadReferenceError, match="not a table with a header"):
        scrm_similarity(LABEL, text)


def test_evaluate_facts_are_named_by_row_and_column() -> None:
    facts = facts_of("Year\tSales\n2019\t$1,200\n2020\t5%\n2021\tn/a\textra")
    assert [(fact.names, fact.word, fact.number) for fact in facts] == [
        (("2019", "sales"), "", 1200),
        (("2020", "sales"), "", 5),
        (("2021", "sales"), "n/a", None),
    ]


@pytest.mark.parametrize(
    ("output", "strict", "slight", "high"),
    [
        (LABEL, 1, 1, 1),
        (LABEL.replace("120", "126"), 3 / 5, 1, 1),  # 5 % off: 3 of 4 + 4 - 3, then all
        (LABEL.replace("120", "132"), 3 / 5, 3 / 5, 1),  # 10 % off
        (LABEL.replace("120", "133"), 3 / 5, 3 / 5, 3 / 5),
        (LABEL.replace("Sales", "Salez"), 2 / 6, 1, 1),  # one edit in two names: 2 of 4 + 4 - 2
        (LABEL.replace("Sales", "Revenue"), 2 / 6, 2 / 6, 2 / 6),  # six edits
        ("Year\tSales\n2019\t100", 1 / 4, 1 / 4, 1 / 4),
        (LABEL + "\n2021\t1\t2", 4 / 6, 4 / 6, 4 / 6),
        (LABEL.upper(), 1, 1, 1),
        ("\t2019\t2020\nSales\t100\t120\nCost\t50\t60", 1, 1, 1),  # transposed
        (LABEL + "\n2020\t120\t60", 1, 1, 1),  # said twice
        (LABEL.replace("100", "one hundred"), 3 / 5, 3 / 5, 3 / 5),
    ],
)
def test_evaluate_scrm_by_hand(output, strict, slight, high) -> None:
    found = [scrm_similarity(output, LABEL, tolerance=name) for name in ("strict", "slight", "high")]
    assert found == pytest.approx([strict, slight, high])


def test_evaluate_scrm_hard_charts_have_wider_tolerances() -> None:
    for name, factor in (("strict", 1.1), ("slight", 1.3), ("high", 1.5)):
        for over, right in ((0.0, 1.0), (0.01, 3 / 5)):
            output = LABEL.replace("120", str(120 * (factor + over)))
            assert scrm_similarity(output, LABEL, tolerance=name, hard=True) == pytest.approx(right)


def test_evaluate_scrm_of_negative_and_zero_labels() -> None:
    for value, right in (("-100", 1), ("-104", 1), ("-106", 0), ("106", 0), ("\u2212100", 1)):
        assert scrm_similarity(f"a\tb\nc\t{value}", "a\tb\nc\t-100", tolerance="slight") == right
    for value, right in (("0", 1), ("0.0", 1), ("0.01", 0), ("-0.01", 0)):
        assert scrm_similarity(f"a\tb\nc\t{value}", "a\tb\nc\t0", tolerance="high") == right


def test_evaluate_scrm_pairs_facts_one_to_one() -> None:
    # Both rows are near the one of the label; only one can be it: 1 of 2 + 1 - 1
    output, label = "a\tb\nrow\t100\nrow\t101", "a\tb\nrow\t100"
    assert scrm_similarity(output, label, tolerance="slight") == 1 / 2
    # 100 fits both labels and 103 only the second: the first has to give way for both to be paired
    output, label = "a\tb\nrow\t101\nrow\t96", "a\tb\nrow\t100\nrow\t105"
    assert scrm_similarity(output, label, tolerance="slight") == 1.0


def test_evaluate_scrm_pairs_tables_longer_than_the_stack() -> None:
    # Each value is near two labels and takes the further one first; the last fits one label, and all have to move.
    size = 1100
    labels = [1.04**i for i in range(size)]
    values = [label * 1.03 for label in labels]
    output = "\n".join(["a\tb", *(f"row\t{value!r}" for value in values)])
    label = "\n".join(["a\tb", *(f"row\t{value!r}" for value in reversed(labels))])
    assert scrm_similarity(output, label, tolerance="slight") == 1.0


def test_evaluate_scrm_swapped_names_are_no_typing_errors() -> None:
    # 'apple' before 'b' becomes 'xpple' after it; sorted, the joined names differ in 2 places of 6
    output, label = "k\tb\nxpple\t1", "k\tb\napple\t1"
    assert scrm_similarity(output, label, tolerance="slight") == 1.0


def published(text):
    return text.replace("\t", "\\t").replace("\n", "\\n")


@pytest.mark.parametrize(
    ("output", "label", "value"),
    [
        ("a\tb\nrow\t999", "a\tb\nrow\t-5", 1.0),  # any number is right for a negative label
        ("a\tb\nrow\t-5", "a\tb\nrow\t5", 0.0),
        ("a\tb\nrow\t100\nrow\t101", "a\tb\nrow\t100", 2.0),  # both match: 2 of 1
        ("a\tb\nrow\t12", "a\tb\nrow\tn/a", 0.0),  # "12.0" and "n/a": four edits
        ("a\tb\nrow\t1", "a\tb\nrow\tx", 0.0),  # "1.0" and "x": three edits
        ("a\tb\nrow\t12,345", "a\tb\nrow\t12345", 0.0),  # "12,345" is a word, three edits from "12345.0"
    ],
)
def test_evaluate_published_scrm_has_its_peculiarities(output, label, value) -> None:
    output, label = published(output), published(label)
    assert scrm_similarity(output, label, tolerance="slight", paper=True) == value


def test_evaluate_published_scrm_lets_numbers_match_words_and_reads_its_own_separators_alone() -> None:
    number, word = published("a\tb\nrow\t12"), published("a\tb\nrow\tn/a")
    assert scrm_similarity(number, word, tolerance="high", paper=True) == 1.0
    assert scrm_similarity(number, word, tolerance="high") == 0.0
    assert scrm_similarity(LABEL, PUBLISHED, paper=True) == 0.0
    assert scrm_similarity(PUBLISHED, PUBLISHED, paper=True) == 1.0
    titled = "A title\\n" + PUBLISHED
    assert scrm_similarity(titled, PUBLISHED, paper=True, title=True) == 1.0
    assert scrm_similarity(titled, PUBLISHED, paper=True) == 0.0
    assert scrm_similarity(titled, titled) == scrm_similarity(titled, PUBLISHED) == 1.0
    with pytest.raises(BadReferenceError, match="literal"):
        scrm_similarity(PUBLISHED, LABEL, paper=True)


def test_evaluate_average_precision_by_hand() -> None:
    # 1.0 reaches ten thresholds, 0.7 five (0.50 to 0.70), 0.5 one, 0.49 none: 16 of 40
    assert average_precision([1.0, 0.7, 0.5, 0.49]) == 16 / 40
    assert average_precision([1.0, 0.7], thresholds=(0.75,)) == 0.5
    assert exact_share([1.0, 0.999, 1.0, 0.0]) == 0.5
    # In the published code, rounding lifts 0.70 to 0.7000000000000002, so that 0.7 reaches four
    assert published_average_precision([1.0, 0.7, 0.5, 0.49]) == 15 / 40
    with pytest.raises(ValueError, match="at least one"):
        average_precision([])


ROWS = st.lists(
    st.tuples(st.sampled_from(["2019", "2020", "x"]), st.sampled_from(["1", "-3", "0", "n/a", "1.04"])),
    min_size=1,
    max_size=4,
)


def best_pairing(given_rows, wanted_rows, tolerance):
    """The intersection by trying every assignment: slow, and plainly right."""
    words, share = TOLERANCES[tolerance, False]

    def near(one, label):
        if one == label:
            return True
        if "n/a" in (one[1], label[1]):
            number, wanted = (0.0, 0.0) if one[1] == label[1] else (0.0, 1e9)
        else:
            number, wanted = float(one[1]), float(label[1])
        edits = 0 if one[0] == label[0] else sum(a != b for a, b in zip(one[0], label[0], strict=False))
        edits += abs(len(one[0]) - len(label[0]))
        return edits <= words and abs(number - wanted) <= share * (abs(wanted) + 1e-6)

    short, long = sorted((given_rows, wanted_rows), key=len)
    flipped = short is not given_rows
    return max(
        sum(near(b, a) if flipped else near(a, b) for a, b in zip(short, order, strict=True))
        for order in itertools.permutations(long, len(short))
    )


@settings(deadline=None)
@given(ROWS, ROWS)
def test_evaluate_scrm_finds_the_best_pairing(left, right) -> None:
    left, right = list(dict.fromkeys(left)), list(dict.fromkeys(right))
    output, label = ("\n".join(["h\tv", *("\t".join(row) for row in rows)]) for rows in (left, right))
    for tolerance in ("strict", "slight"):
        both = best_pairing(left, right, tolerance)
        assert scrm_similarity(output, label, tolerance=tolerance) == both / (len(left) + len(right) - both)
    assert scrm_similarity(output, label) == scrm_similarity(label, output)
    assert scrm_similarity(label, label) == 1.0


@settings(deadline=None)
@given(st.text(st.sampled_from('ab1|,\t\n\\"-−中'), max_size=30))
def test_evaluate_scrm_never_fails_on_an_output(output) -> None:
    for paper in (False, True):
        assert 0 <= scrm_similarity(output, PUBLISHED, paper=paper) <= 1
