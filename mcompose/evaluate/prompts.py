"""From a question to the turn that the checkpoint reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mcompose.errors import RequestError

if TYPE_CHECKING:
    from mcompose.evaluate.evaluated_model import EvaluatedModel

__all__ = ["TEMPLATES", "check_template", "in_chat", "in_template"]

TEMPLATES: Final = {
    "plain": "{prompt}",
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: {prompt} ASSISTANT:"
    ),
}
"""Named forms; "vicuna" is Vicuna 1.1's, which the released MCUB scores were made with. Beside them: "chat"."""


def check_template(template: str) -> None:
    """Refuses what is not a template.

    Args:
        template: "chat", a name of ``TEMPLATES``, or a text that holds ``{prompt}`` once.

    Raises:
        RequestError: It is none of these.
    """
    if template != "chat" and template not in TEMPLATES and template.count("{prompt}") != 1:
        raise RequestError(
            f"No template is called '{template}'.",
            hint=f"Known: chat, {', '.join(TEMPLATES)}; or a text that holds {{prompt}}.",
        )


def in_template(evaluated: EvaluatedModel, prompt: str, template: str) -> str:
    """Returns the turn.

    Args:
        evaluated: The checkpoint.
        prompt: The question with its placeholders.
        template: As ``check_template`` takes it.

    Returns:
        What the checkpoint reads.
    """
    if template == "chat":
        return in_chat(evaluated, prompt)
    return TEMPLATES.get(template, template).replace("{prompt}", prompt)


def in_chat(evaluated: EvaluatedModel, prompt: str) -> str:
    """Returns the prompt as a user's turn, where the checkpoint has a chat template.

    Args:
        evaluated: The checkpoint.
        prompt: With its placeholders.

    Returns:
        The turn; the prompt itself when there is no template.
    """
    for holder in (evaluated.processor, evaluated.tokenizer):
        if getattr(holder, "chat_template", None):
            turns = [{"role": "user", "content": prompt}]
            return str(holder.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return prompt
