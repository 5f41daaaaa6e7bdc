"""Data sets that name a task: what a recipe may say, and one sentence for what it may not."""

import pytest
from recipe_failures import GOOD, failure, write

from mcompose.recipe import load_recipe
from mcompose.recipe.align.tasks import names_in

STAGE = "align:\n  stages:\n    1: {train: [projectors], steps: 1, data: [%s]%s}\n"


def with_data(entry, more=""):
    return GOOD + STAGE % (entry, more)


def test_tasks_are_read(tmp_path):
    entry = "{path: a.jsonl, task: refer, templates: ['Where is {expression}?'], boxes: {form: xywh}, quota: 50}"
    stage = load_recipe(write(tmp_path, with_data(entry, ", batches: one_task"))).recipe.align.stages[1]
    (spec,) = stage.data
    assert (spec.task, spec.templates.instructions, spec.quota) == ("refer", ("Where is {expression}?",), 50)
    assert (spec.boxes.unit, spec.boxes.form, spec.boxes.align) == ("pixels", "xywh", None)
    assert (spec.task_name, stage.batches) == ("refer", "one_task")


def test_names_of_templates():
    assert names_in("{a} and {b}, {{c}} {a}") == ("a", "b")
    for bad in ("{a", "a}", "{}", "{a.b}", "{a!r}", "{a:3}", "{0}"):
        with pytest.raises(ValueError, match=r"."):
            names_in(bad)


REFUSED = {
    "{path: a.jsonl, task: vqaa}": (
        "'align.stages[1].data[0].task' is not a known task: 'vqaa'.",
        "Did you mean 'vqa'?",
    ),
    "{path: a.jsonl, task: count, templates: ['How many?']}": (
        "'align.stages[1].data[0].templates' lacks 'answer', and the task 'count' is not a built-in one.",
        "",
    ),
    "{path: a.jsonl, templates: [a]}": (
        "'align.stages[1].data[0].templates' needs a 'task'.",
        "Write 'task: vqa', for example.",
    ),
    "{path: a.jsonl, boxes: {form: xywh}}": (
        "'align.stages[1].data[0].boxes' needs a 'task'.",
        "Write 'task: refer', for example.",
    ),
    "{path: a.jsonl, task: refer, boxes: {form: xyhw}}": (
        "'align.stages[1].data[0].boxes.form' is not a known form of boxes: 'xyhw'.",
        "Did you mean 'xywh'?",
    ),
    "{path: a.jsonl, task: vqa, format: llava}": (
        "'align.stages[1].data[0].format' cannot be set beside 'task'.",
        "Remove one of them: a task makes conversations of plain records.",
    ),
    "{path: a.jsonl, task: vqa, templates: ['{question']}": (
        "'align.stages[1].data[0].templates[0]' has a brace that does not enclose a name.",
        "Write names as {question}; write {{ and }} for braces that are meant as such.",
    ),
    "{path: a.jsonl, task: vqa, templates: {instruction: [a]}}": (
        "'align.stages[1].data[0].templates.instruction' is not a known key.",
        "Did you mean 'instructions'?",
    ),
    "{path: a.jsonl, streaming: true, quota: 3}": (
        "'align.stages[1].data[0].quota' needs a data set that is listed: a stream has no epochs.",
        "Remove 'streaming', or set 'weight' instead.",
    ),
}


@pytest.mark.parametrize("entry", REFUSED)
def test_one_sentence_each(tmp_path, entry):
    _, message, hint = failure(tmp_path, with_data(entry))
    assert (message, hint) == REFUSED[entry]


def test_batches_of_one_task_are_a_known_word(tmp_path):
    _, message, hint = failure(tmp_path, with_data("a.jsonl", ", batches: one_tsk"))
    assert message == "'align.stages[1].batches' is not a known kind of batches: 'one_tsk'."
    assert hint == "Did you mean 'one_task'?"


def test_pairs_are_not_made_by_templates(tmp_path):
    _, message, hint = failure(tmp_path, with_data("{path: a.jsonl, task: vqa}", ", dpo: 0.1"))
    assert message == (
        "'align.stages[1].data[0].task' cannot be combined with 'dpo': "
        "templates make one answer of a record, not a pair."
    )
    assert hint == "Write the pairs as conversations."
