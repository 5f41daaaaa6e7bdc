"""The label-free rule, on answers that were written by hand."""

import pytest

from mcompose.errors import RequestError
from mcompose.pipeline.search.consistency import changed_answers, choose, grid_points
from mcompose.pipeline.search.request import make_grid
from mcompose.pipeline.search.space import Axis, Space

# Seven coefficients, four questions. At place 2 one answer differs from a neighbour's, at 3 two do, ...
ANSWERS = {
    (0,): ["cat", "red", "two", "yes"],
    (1,): ["cat", "red", "two", "no"],
    (2,): ["Cat", "red", "two", "no"],
    (3,): ["cat", "red", "six", "no"],
    (4,): ["dog", "red", "six", "no"],
    (5,): ["dog", "red", "six", "no"],
    (6,): ["???", "???", "???", "???"],
}


def test_an_answer_counts_once_when_it_is_not_that_of_both_neighbours():
    # 1: "no" after "yes"; letters' case is no change. 2: "two" before "six". 3: "six" after "two", "cat" before "dog".
    # 4: "dog" after "cat". 5: everything before "???".
    assert changed_answers(ANSWERS) == {(1,): 1, (2,): 1, (3,): 2, (4,): 1, (5,): 4}


def test_the_ends_are_neighbours_only_and_the_first_of_a_tie_is_the_choice():
    assert choose(changed_answers(ANSWERS)) == ((1,), (2,), (4,))
    steady = {(k,): ["same"] for k in range(4)}
    assert choose(changed_answers(steady)) == ((1,), (2,))


def test_a_question_that_changes_on_both_sides_counts_once():
    assert changed_answers({(0,): ["a"], (1,): ["b"], (2,): ["c"]}) == {(1,): 1}


def test_a_place_whose_neighbour_failed_is_no_candidate():
    left = {point: answers for point, answers in ANSWERS.items() if point != (3,)}
    assert list(changed_answers(left)) == [(1,), (5,)]
    assert choose(changed_answers({(0,): ["a"], (1,): ["a"]})) == ()


def test_two_axes_need_all_four_neighbours_to_agree():
    answers = {point: ["a", "b"] for point in grid_points([3, 4])}
    answers[1, 3] = ["a", "other"]  # beside (1, 2)
    answers[0, 3] = ["other", "other"]  # beside no candidate: diagonals are no neighbours
    assert changed_answers(answers) == {(1, 1): 0, (1, 2): 1}


def test_the_papers_grid_is_seven_weights_of_the_second_source():
    space = Space(("sees", "hears"), "sum", low=0.0, high=0.6, step=0.1)
    settings = [space.settings(values) for values in make_grid(space).values()]
    assert [s.weights["hears"] for s in settings] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [s.weights["sees"] for s in settings] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def test_on_the_grid_of_several_sources_the_first_takes_the_rest_and_is_never_negative():
    space = Space(("a", "b", "c"), "sum", low=0.0, high=0.6, step=0.2)
    grid = make_grid(space)
    kept = {(b, c) for b in range(4) for c in range(4) if b + c <= 5}
    assert set(grid) == kept
    for (b, c), values in grid.items():
        weights = space.settings(values).weights
        assert weights == {"a": round(1 - 0.2 * (b + c), 10), "b": round(0.2 * b, 10), "c": round(0.2 * c, 10)}


def test_free_weights_and_parameters_have_an_axis_each():
    space = Space(("a", "b"), "free", high=1.0, step=0.5, parameters=(Axis("parameter:density", 0.2, 0.6, step=0.2),))
    grid = make_grid(space)
    assert len(grid) == 27
    assert grid[1, 2, 0] == {"weight:a": 0.5, "weight:b": 1.0, "parameter:density": 0.2}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space(("a", "b"), "sum", low=0.0, high=0.6, step=0.6), "No point of the grid"),
        (Space(tuple("abcdef"), "free", step=0.01), "The grid has 1,061,520,150,601 points"),
    ],
    ids=["two values", "too many"],
)
def test_a_grid_that_cannot_be_chosen_from_is_refused(space, message):
    with pytest.raises(RequestError, match=message):
        make_grid(space)
