"""A conversation as the checkpoint's own chat template writes it, and where in that text the answers stand.

A template is asked twice for each answer: for the conversation before it with the opening of an answer, and for the
conversation up to its end. What the second text has more than the first is what the model must write itself: the answer
and the end of its turn. No mark in the template is needed for it (``{% generation %}``), and the answer's prompt is by
construction the one that it gets when it is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from jinja2.exceptions import TemplateError

from mcompose.align.data.samples import Sample
from mcompose.errors import RequestError
from mcompose.modalities import MODALITIES, PLACEHOLDERS
from mcompose.modeling import DEFAULT_TEMPLATE, processor_placeholder

__all__ = ["PLAIN_TEMPLATE", "ChatWriter", "Conversation"]

PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
)
"""Turns joined by spaces, the end token after each answer: for captions, and for models that know no chat."""

_PROBE: Final = "words that a template must keep"


@dataclass(frozen=True)
class Conversation:
    """A conversation as text.

    Args:
        text: What the processor is given, a placeholder for each medium.
        answers: (start, end) of every answer in the text, with the end of its turn; of a pair's, the last only.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


class ChatWriter:
    """Writes conversations for one checkpoint.

    Args:
        processor: Its processor, or its tokenizer when it takes text only.
        chat_template: Template to use instead of the checkpoint's own.

    Raises:
        RequestError: The template keeps nothing of what is said.
    """

    def __init__(self, processor: Any, *, chat_template: str | None = None) -> None:
        self.tokenizer = getattr(processor, "tokenizer", processor)
        own = chat_template or getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        self._template = own.get("default") if isinstance(own, dict) else own or DEFAULT_TEMPLATE
        self.placeholders = {m: processor_placeholder(processor, m) or PLACEHOLDERS[m] for m in MODALITIES}
        special = (*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab())
        self._special_tokens = tuple(str(token) for token in special)
        # Templates of native processors often read lists of parts only.
        self._in_parts = False
        self._in_parts = not self._keeps_text()
        if self._in_parts and not self._keeps_text():
            raise RequestError("The chat template of this checkpoint drops the user's text.")

    def write(self, sample: Sample) -> Conversation:
        """Writes a sample's conversation.

        Args:
            sample: The sample.

        Returns:
            Its text, and where the answers are.

        Raises:
            RequestError: The template refuses the conversation, or rewrites an earlier part of it before an answer.
        """
        try:
            written = self._written([self._message(message) for message in sample.messages])
            return written if sample.rejected is None else Conversation(written.text, written.answers[-1:])
        except TemplateError as error:
            raise RequestError(f"{sample.place}: the chat template refuses the conversation: {error}.") from error
        except RequestError as error:
            raise RequestError(f"{sample.place}: {error.message}", hint=error.hint) from error

    def _written(self, messages: Sequence[dict[str, Any]]) -> Conversation:
        whole = self._render(messages)
        answers = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._start(messages[:index], whole)
                until = messages[: index + 1]
                answers.append((start, self._end(until, whole, start, is_last=len(until) == len(messages))))
        return Conversation(whole, tuple(answers))

    def _start(self, before: Sequence[dict[str, Any]], whole: str) -> int:
        prompt = self._render(before, prompt=True) if before else ""
        if not whole.startswith(prompt):
            raise RequestError(
                f"the chat template changes the text before answer {_count(before) + 1} when later turns follow.",
                hint="Split the conversation into one record per answer, or use another chat template.",
            )
        return len(prompt)

    def _end(self, until: Sequence[dict[str, Any]], whole: str, start: int, *, is_last: bool) -> int:
        alone = whole if is_last else self._render(until)
        said = self._text_of(until[-1]).strip()
        here, there = whole.find(said, start), alone.find(said, start)
        if here < 0 or there < 0:
            raise RequestError(f"the chat template changes the text of answer {_count(until)}.")
        # What follows the words, as far as it does not depend on the next turn.
        tail = _common_start(whole[here + len(said) :], alone[there + len(said) :])
        closed = tail.rstrip()
        ends_turn = closed.endswith(self._special_tokens)
        return here + len(said) + len(closed if ends_turn else tail)

    def _render(self, messages: Sequence[dict[str, Any]], *, prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), chat_template=self._template, tokenize=False, add_generation_prompt=prompt
        )

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        text = "".join(
            part["text"] if part["type"] == "text" else self.placeholders[part["type"]] for part in message["content"]
        )
        return {"role": message["role"], "content": [{"type": "text", "text": text}] if self._in_parts else text}

    def _text_of(self, message: dict[str, Any]) -> str:
        return message["content"][0]["text"] if self._in_parts else message["content"]

    def _keeps_text(self) -> bool:
        probe = {"role": "user", "content": [{"type": "text", "text": _PROBE}]}
        try:
            return _PROBE in self._render([self._message(probe)], prompt=True)
        except (TemplateError, TypeError):
            return False


def _count(messages: Sequence[dict[str, Any]]) -> int:
    return sum(message["role"] == "assistant" for message in messages)


def _common_start(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
