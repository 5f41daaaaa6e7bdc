"""Where a wrong setting is refused, and what the sentence says."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pytest

from mcompose.errors import RequestError, UnknownNameError
from mcompose.methods import METHODS, REQUIRED, TensorTask, arguments_for, merge_tensors
from mcompose.methods.core.declare import PerSource, Range, Words, method
from mcompose.methods.core.method import Parameter

ONE = np.ones(3, np.float32)


def task(**changes):
    settings = {"name": "w", "shape": (3,), "sources": ("sees", "hears"), "weights": (0.5, 0.5)} | changes
    return TensorTask(**settings)


def test_parameters_are_read_off_the_signature():
    ties = {parameter.name: parameter for parameter in METHODS.get("ties").parameters}
    assert list(ties) == ["density", "normalize", "rescale", "lambda"]
    assert ties["density"] == Parameter("density", 1.0, per_source=True, low=0.0, high=1.0)
    assert ties["normalize"] == Parameter("normalize", True, kind=bool)
    assert ties["lambda"] == Parameter("lambda", 1.0)
    assert ties["rescale"].choices == ("mergekit", "none")
    assert METHODS.get("slerp").parameters == (Parameter("t", REQUIRED),)
    assert not METHODS.get("slerp").weighted
    assert METHODS.get("dare_ties").random


def test_decorator_takes_its_facts_from_the_function(monkeypatch):
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))

    @method("toy", title="Toy", paper="", space="weights", base="unused")
    def toy(
        tensors,
        *,
        much: Annotated[PerSource, Range(0.0, 2.0)],
        how: Annotated[Literal["a", "b"], Words({True: "a"})] = "b",
        steps: int = 3,
    ):
        return tensors[0]

    entry = METHODS.get("toy")
    assert entry.function is toy
    assert (entry.program, entry.random, entry.weighted) == (None, False, False)
    assert [p.kind for p in entry.parameters] == [float, str, int]
    arguments = arguments_for(entry, task(parameters={"much": {"hears": 2, "sees": 1}, "how": True, "steps": 4.0}))
    assert arguments == {"much": (1.0, 2.0), "how": "a", "steps": 4}


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        ("ties", {"densitty": 0.5}, "no parameter 'densitty'. Did you mean 'density'?"),
        ("ties", {"density": 1.5}, "is 1.5; it must be in [0, 1]."),
        ("ties", {"density": [0.5]}, "has 1 value(s) for 2 source(s)."),
        ("ties", {"density": {"sees": 0.5}}, "has no value for source 'hears'."),
        ("ties", {"density": {"sees": 0.5, "haers": 1}}, "names 'haers', which is not a source. Did you mean 'hears'?"),
        ("ties", {"density": "half"}, "must be a float, not 'half'."),
        ("ties", {"density": True}, "must be a float, not True."),
        ("ties", {"normalize": 1}, "must be a bool, not 1."),
        ("ties", {"lambda": float("nan")}, "is nan; it must be in the finite numbers."),
        ("dare_ties", {"rescale": "papr"}, "cannot be 'papr'. Did you mean 'paper'?"),
        ("ties", {"rescale": "paper"}, "cannot be 'paper'."),
        ("slerp", {}, "needs the parameter 't'."),
        ("karcher", {"max_iter": 2.5}, "must be a int, not 2.5."),
        ("karcher", {"max_iter": -1}, "is -1; it must be in the numbers from 0."),
        ("della", {"density": 0.1}, "gives probabilities outside (0, 1)."),
    ],
)
def test_wrong_parameters_are_refused_before_any_weight_is_read(name, parameters, sentence):
    with pytest.raises(RequestError) as refused:
        METHODS.get(name).program(task(parameters=parameters))
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("slerp", {"sources": ("a",), "weights": (1.0,), "parameters": {"t": 0.5}}, "takes exactly 2 source(s), not 1"),
        ("passthrough", {}, "takes exactly 1 source(s), not 2"),
        ("model_stock", {"sources": ("a",), "weights": (1.0,)}, "takes at least 2 source(s), not 1"),
        ("linear", {"weights": (1.0,)}, "needs one weight for each of 2 source(s), not 1"),
        ("linear", {"weights": (1.0, float("inf"))}, "must be finite"),
    ],
)
def test_wrong_counts_are_refused(name, changes, sentence):
    with pytest.raises(RequestError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        METHODS.get(name).program(task(**changes))


def test_one_call_form_refuses_what_does_not_fit():
    with pytest.raises(UnknownNameError, match="Did you mean 'ties'"):
        merge_tensors("tis", [ONE])
    with pytest.raises(RequestError, match="does not take weights"):
        merge_tensors("slerp", [ONE, ONE], t=0.5, weights=[1, 1])
    with pytest.raises(RequestError, match="at least one tensor"):
        merge_tensors("linear", [])


def test_one_call_form_takes_both_spellings_of_lambda():
    settings = {"base": 0 * ONE, "weights": [2.0]}
    first = merge_tensors("task_arithmetic", [ONE], lambda_=0.5, **settings)
    second = merge_tensors("task_arithmetic", [ONE], **{"lambda": 0.5}, **settings)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, ONE)


def test_integers_come_back_as_integers_do():
    merged = merge_tensors("linear", [np.array([0, 4]), np.array([4, 4])])
    assert merged.dtype == np.int64
    assert merged.tolist() == [2, 4]


def test_mergekit_means_its_own_rescale():
    for name in ("dare_linear", "dare_ties", "della", "della_linear"):
        assert METHODS.get(name).mergekit_defaults == {"rescale": "mergekit"}
        default = next(p.default for p in METHODS.get(name).parameters if p.name == "rescale")
        assert default == "paper"
    assert "int8_mask" in METHODS.get("ties").mergekit_ignored
