"""How much of the attention falls on given positions, such as an expert's tokens.

Paper: Chimera, arXiv 2412.05983, Fig. 4 (attention on expert tokens with and without masking; it prints no numbers, so
the share below is this project's own measure).
"""

from __future__ import annotations

from typing import Any

from mcompose.errors import RequestError

__all__ = ["attention_mass"]


def attention_mass(attention: Any, *, queries: Any, keys: Any) -> Any:
    """Returns share of some positions' attention that falls on other positions.

    The position that predicts a token is the one before it: to ask what an answer was read from, mark the positions
    from the last of the prompt to the last but one of the answer.

    Args:
        attention: Weights of one layer after the softmax, (B, H, L, L): query, then key. A tensor or an array.
        queries: Whose attention, (B, L), true or 1 where it counts.
        keys: Attention on what, (B, L).

    Returns:
        Per sample and head, (B, H): the attention of all queries on the keys over all their attention. Rows that are
        masked out as a whole have none and count for nothing.

    Raises:
        RequestError: The shapes do not fit, or a sample has no query with any attention.
    """
    batch, _, length, width = attention.shape
    for name, marked in (("queries", queries), ("keys", keys)):
        if tuple(marked.shape) != (batch, length):
            raise RequestError(
                f"The {name} have shape {tuple(marked.shape)}, and the attention has {batch} x {length}."
            )
    if width != length:
        raise RequestError(f"Each of {length} positions attends to {width}: this is no attention over the whole text.")
    if hasattr(attention, "float"):
        attention = attention.float()  # sums of many small weights lose digits in half precision
    by_query = attention * (queries != 0)[:, None, :, None]
    whole = by_query.sum((-2, -1))
    on_keys = (by_query * (keys != 0)[:, None, None, :]).sum((-2, -1))
    without = [i for i in range(batch) if not bool((whole[i] > 0).all())]
    if without:
        raise RequestError(f"Sample {without[0]} has no position whose attention could be shared out.")
    return on_keys / whole
