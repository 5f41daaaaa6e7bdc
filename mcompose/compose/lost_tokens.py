"""Tokens of a source that the output's tokenizer does not have: they are told, and a chat's own ends of turns refused.

The output ships one tokenizer. Rows of tokens that only another source knows are not in the output, and what that
source was taught with them cannot be asked for. A source that was tuned for chat and ends its turns with such a token
would never stop, so that the recipe has to say that it is given up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mcompose.errors import CompositionError

if TYPE_CHECKING:
    from mcompose.compose.vocabulary import Vocabulary
    from mcompose.merge import SourceParts

__all__ = ["lost_tokens"]

SHOWN = 8


def lost_tokens(
    owner: Vocabulary, sources: Sequence[tuple[SourceParts, Vocabulary]], *, named: bool, native: bool
) -> list[str]:
    """Tells which tokens of the sources the output does not have.

    Args:
        owner: Tokens of the output.
        sources: The other sources and their tokens.
        named: Whether the recipe names the tokenizer.
        native: Whether the output keeps the owner's class, and so its tokenizer.

    Returns:
        One warning for each source that loses tokens.

    Raises:
        CompositionError: A chat's end of turn would be lost, and the recipe does not name the tokenizer.
    """
    kept = dict.fromkeys(owner.tokens.values())
    warnings = []
    for source, vocabulary in sources:
        placeholders = source.anatomy.placeholders.values()
        lost = {
            index: token
            for index, token in sorted(vocabulary.tokens.items())
            if token not in kept and index not in placeholders and index < vocabulary.rows
        }
        if not lost:
            continue
        shown = sorted(lost.values(), key=lambda token: not _is_mark(token))[:SHOWN]
        listed = ", ".join(f"{token[:40]!r}" for token in shown)
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        sentence = f"The tokenizer of '{owner.source}', which the output keeps, does not have {listed}{more}"
        keep = f"`merge.tokenizer: {source.name}` keeps them (in a mergekit file: `tokenizer_source`)"
        if native:
            keep = f"`output.format: composed` with `merge.tokenizer: {source.name}` keeps them"
        end = next((token for token in lost.values() if token in _ends(source, vocabulary)), "")
        if end and not named:
            raise CompositionError(
                f"{sentence} of '{source.name}', a chat model that ends its turns with {end[:40]!r}.",
                hint=f"{keep}; `merge.tokenizer: {owner.source}` gives them up.",
            )
        warnings.append(f"{sentence} of '{source.name}': their rows are left out. {keep}.")
    return warnings


def _ends(source: SourceParts, vocabulary: Vocabulary) -> list[str]:
    """Returns the tokens at the ends of a chat model's turns; none for a model without a chat template."""
    folder = source.checkpoint.folder
    settings = _json(folder / "tokenizer_config.json")
    template = settings.get("chat_template")
    files = [folder / "chat_template.jinja", folder / "chat_template.json"]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()]
    if not template and not texts:
        return []
    ends = [_content(settings.get("eos_token"))]
    for table in (_json(folder / "generation_config.json"), source.checkpoint.config):
        ids = table.get("eos_token_id")
        ends += [vocabulary.tokens.get(one, "") for one in _numbers(ids)]
    if not source.anatomy.modalities:  # a multimodal model's template has marks around its media, too
        text = json.dumps(template, ensure_ascii=False) + "".join(texts)
        ends += [token for token in vocabulary.tokens.values() if _is_mark(token) and token in text]
    return [token for token in ends if token]


def _is_mark(token: str) -> bool:
    return len(token) > 2 and token[0] in "<[" and token[-1] in ">]"


def _content(token: Any) -> str:
    value = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else ""


def _numbers(ids: Any) -> list[int]:
    values = cast("list[Any]", ids) if isinstance(ids, list) else [ids]
    return [value for value in values if isinstance(value, int) and not isinstance(value, bool)]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}
