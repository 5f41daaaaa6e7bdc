r"""How the records of a task are worded: instructions and answers with names in braces, which a record fills in.

The built-in tasks stand in ``tasks.yaml`` beside this file. A data set names one of them and may word it differently,
in the recipe or in a file with one entry for each task::

    data:
      - {path: data/vqa.jsonl, task: vqa}
      - {path: data/refcoco.jsonl, task: refer, templates: ["Where is {expression}?", "Find {expression}."]}
      - {path: data/poses.jsonl, task: pose, templates: templates.yaml}
      - {path: data/counts.jsonl, task: count, templates: {instructions: ["How many {thing}?"], answer: "{number}"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationError

from mcompose.errors import RecipeError, nearest_name
from mcompose.recipe.document import Document, parse_document
from mcompose.recipe.field_errors import FieldError, as_recipe_error
from mcompose.recipe.fields import Spec, one_of

__all__ = ["BoxForm", "TaskName", "Templates", "Wording", "builtin_tasks", "names_in", "read_templates"]

_FILE = Path(__file__).with_name("tasks.yaml")
_UNITS = ("pixels", "picture", "square")


def names_in(template: str) -> tuple[str, ...]:
    """Returns the names in braces of a template, each once, in order.

    Args:
        template: Text such as ``"Where is {expression}?"``.

    Raises:
        ValueError: A brace is not closed, or holds something else than a name.
    """
    found: dict[str, None] = {}
    for _, name, form, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise ValueError("a pair of braces must hold one name")
        found[name] = None
    return tuple(found)


def _template(raw: Any) -> Any:
    if not isinstance(raw, str) or not raw.strip():
        raise FieldError("'{path}' must be a text with names in braces.", hint="Write 'Where is {expression}?'.")
    try:
        names_in(raw)
    except ValueError:
        raise FieldError(
            "'{path}' has a brace that does not enclose a name.",
            hint="Write names as {question}; write {{ and }} for braces that are meant as such.",
        ) from None
    return raw


Template: TypeAlias = Annotated[str, BeforeValidator(_template)]


class Wording(Spec):
    """Words of a task.

    Attributes:
        instructions: What is asked; of several, one is chosen for each record.
        answer: What is answered; default: the built-in task's.
    """

    instructions: tuple[Template, ...] | None = Field(default=None, min_length=1)
    answer: Template | None = None

    def over(self, other: Wording | None) -> Wording:
        """Returns this wording with what it leaves out taken from another one."""
        return Wording(
            instructions=self.instructions or (other.instructions if other else None),
            answer=self.answer or (other.answer if other else None),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All names that a record must fill in, each once, in order."""
        texts = [*(self.instructions or ()), *([self.answer] if self.answer else [])]
        return tuple(dict.fromkeys(name for text in texts for name in names_in(text)))


class BoxForm(Spec):
    """How the records of a task write boxes and points.

    Attributes:
        unit: ``pixels``; ``picture``: fractions of width and height; ``square``: fractions of the padded square.
        form: ``xyxy`` (left, top, right, bottom) or ``xywh`` (left, top, width, height).
        align: Where the picture lies in its padded square: ``center`` or ``corner``; default: as the checkpoint's mixed
            encoders place it, else ``center``.
    """

    unit: Annotated[Literal["pixels", "picture", "square"], one_of("unit of boxes", _UNITS)] = "pixels"
    form: Annotated[Literal["xyxy", "xywh"], one_of("form of boxes", ("xyxy", "xywh"))] = "xyxy"
    align: Annotated[Literal["center", "corner"], one_of("alignment", ("center", "corner"))] | None = None


def _templates(raw: Any) -> Any:
    """Reads a path, a list of instructions, or a wording."""
    if isinstance(raw, str) and raw.strip():
        return raw.removeprefix("local:")
    if isinstance(raw, list | tuple):
        return {"instructions": raw}
    if isinstance(raw, Mapping | Wording):
        return raw
    raise FieldError("'{path}' must be a file, a list of instructions, or a mapping with 'instructions' and 'answer'.")


def _task(raw: Any) -> Any:
    if not isinstance(raw, str) or not raw.isidentifier():
        raise FieldError("'{path}' must be the name of a task.", hint=f"Known names: {', '.join(builtin_tasks())}.")
    return raw


TaskName: TypeAlias = Annotated[str, BeforeValidator(_task)]
Templates: TypeAlias = Annotated[str | Wording, BeforeValidator(_templates)]


def check_task(task: str | None, templates: str | Wording | None) -> None:
    """Checks what a data set says about its task.

    Args:
        task: Its name; None without one.
        templates: Its own words.

    Raises:
        FieldError: The task is not known and not worded, or words have no task.
    """
    if task is None:
        if templates is not None:
            raise FieldError("'{path}' needs a 'task'.", at=("templates",), hint="Write 'task: vqa', for example.")
        return
    if isinstance(templates, str):
        return
    built_in = builtin_tasks()
    whole = (templates or Wording()).over(built_in.get(task))
    if templates is None and task not in built_in:
        raise FieldError(f"'{{path}}' is not a known task: '{task}'.", at=("task",), hint=nearest_name(task, built_in))
    if whole.instructions is None or whole.answer is None:
        lacking = "instructions" if whole.instructions is None else "answer"
        raise FieldError(
            f"'{{path}}' lacks '{lacking}', and the task '{task}' is not a built-in one.", at=("templates",)
        )


@cache
def builtin_tasks() -> dict[str, Wording]:
    """Returns the built-in tasks, in the order of their file."""
    return _wordings(parse_document(_FILE.read_text(encoding="utf-8"), file=str(_FILE)))


def read_templates(path: Path) -> dict[str, Wording]:
    """Reads a file with the words of tasks.

    Args:
        path: YAML file: task to ``instructions`` (or a list of them alone) and ``answer``.

    Returns:
        Task to wording, in the order of the file.

    Raises:
        RecipeError: The file cannot be read, or an entry is not valid; the error has file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError("the file of templates does not exist.", file=str(path)) from None
    except (OSError, UnicodeDecodeError):
        raise RecipeError("the file of templates cannot be read as text.", file=str(path)) from None
    return _wordings(parse_document(text, file=str(path), kind="file of templates"))


def _wordings(document: Document) -> dict[str, Wording]:
    found: dict[str, Wording] = {}
    for task, raw in document.data.items():
        if not isinstance(task, str) or not task.isidentifier():
            raise document.error(f"'{task}' is not the name of a task.", at=(task,), hint="Use letters and '_'.")
        entry = {"instructions": raw} if isinstance(raw, list) else raw
        lines = {at[1:]: line for at, line in document.lines.items() if at[0] == task and len(at) > 1}
        inner = Document(document.file, entry if isinstance(entry, dict) else {}, lines)
        if not isinstance(entry, dict):
            raise document.error(f"'{task}' must be a mapping with 'instructions' and 'answer'.", at=(task,))
        try:
            found[task] = Wording.model_validate(entry)
        except ValidationError as error:
            raise as_recipe_error(error, model=Wording, document=inner) from None
    return found
