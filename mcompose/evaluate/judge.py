"""A judge reads free answers about objects: which of 40 classes is meant, or whether two texts name the same thing.

Paper: PointLLM, arXiv 2308.16911, and its use by arXiv 2402.12750.
Differs: The questions are worded here, so figures compare among runs of one judge only. A reply that cannot be parsed
is wrong and counted; the original draws a random class for it.
"""

from __future__ import annotations

import re
from typing import Final

from mcompose.evaluate.task import Item, Task

__all__ = ["judge_prompt", "parse_verdict"]

_INDEX: Final = re.compile(r"\s*(-?\d+)\D*")
_TRUTH: Final = re.compile(r"\s*[\"'*]*(t|true|f|false|yes|no)\b", re.IGNORECASE)


def judge_prompt(task: Task, item: Item, output: str) -> str:
    """Returns what the judge is asked.

    Args:
        task: The task; its ``judge`` says which question.
        item: The question that was answered.
        output: What the model wrote.

    Returns:
        The prompt. It does not tell the judge which class is right.
    """
    if task.judge == "class":
        classes = "\n".join(f"{index}: {name.replace('_', ' ')}" for index, name in item.choices.items())
        return (
            "A model was shown a 3-D object and wrote the description below. Which one of these classes does the "
            f"description mean?\n\n{classes}\n\nDescription: {output}\n\n"
            "Reply with the number of the class and nothing else. Reply -1 when the description fits none of them."
        )
    return (
        "A model was shown a 3-D object and wrote the description below. A person wrote the reference. Do both name "
        f"the same kind of object?\n\nReference: {item.answer}\nDescription: {output}\n\n"
        "Reply T when they do and F when they do not, and nothing else."
    )


def parse_verdict(task: Task, item: Item, reply: str) -> bool | None:
    """Reads the judge's reply.

    Args:
        task: The task.
        item: The question.
        reply: What the judge wrote.

    Returns:
        Right or wrong; None when the reply has no known form. "-1", no class, is wrong.
    """
    if task.judge == "class":
        index = _INDEX.fullmatch(reply)
        if index is None or (index[1] != "-1" and index[1] not in item.choices):
            return None
        return item.choices.get(index[1]) == item.answer
    word = _TRUTH.match(reply)
    return word[1].lower() in {"t", "true", "yes"} if word else None
