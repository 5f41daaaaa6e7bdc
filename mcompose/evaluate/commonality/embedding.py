"""Captions as vectors. Any callable does; two come with it.

``sentence-transformers`` (an extra to install) reads meaning; ``tfidf`` needs nothing and reads words: hashed stems and
letter triples, weighted by how rare they are.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from mcompose.errors import RequestError
from mcompose.evaluate.commonality.words import content_words

__all__ = ["Embed", "embedder", "tfidf"]

Embed = Callable[[Sequence[str]], np.ndarray]
_WIDTH: Final = 4096
_TRIPLE_WEIGHT: Final = 0.3
_MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"


def tfidf(captions: Sequence[str]) -> np.ndarray:
    """Vectors of words.

    Args:
        captions: Texts.

    Returns:
        float32 (captions, 4096), rows of length 1; a caption without content is 0.
    """
    counts = np.zeros((len(captions), _WIDTH), np.float32)
    for row, caption in enumerate(captions):
        for stem in content_words(caption):
            counts[row, zlib.crc32(stem.encode()) % _WIDTH] += 1
            padded = f"^{stem}$"
            for start in range(len(padded) - 2):
                counts[row, zlib.crc32(b"3" + padded[start : start + 3].encode()) % _WIDTH] += _TRIPLE_WEIGHT
    rarity = np.log((1 + len(captions)) / (1 + (counts > 0).sum(axis=0))) + 1
    return unit(counts * rarity)


def embedder(name: str) -> tuple[str, Embed]:
    """Returns an embedding by name.

    Args:
        name: "tfidf", "sentence-transformers" or "sentence-transformers:MODEL"; "auto" takes sentence-transformers
            where it is installed.

    Returns:
        What it is called in records, and the embedding.

    Raises:
        RequestError: There is no such embedding, or it is not installed.
    """
    kind, _, model = name.partition(":")
    if kind not in {"auto", "tfidf", "sentence-transformers"}:
        raise RequestError(
            f"No embedding is called '{name}'.", hint="Known: auto, tfidf, sentence-transformers[:MODEL]."
        )
    if kind == "tfidf":
        return "tfidf", tfidf
    try:
        library: Any = importlib.import_module("sentence_transformers")
    except ImportError as error:
        if kind == "auto":
            return "tfidf", tfidf
        raise RequestError(
            "sentence-transformers is not installed.", hint="pip install sentence-transformers, or take tfidf."
        ) from error
    model = model or _MODEL

    def embed(captions: Sequence[str]) -> np.ndarray:
        vectors = library.SentenceTransformer(model).encode(list(captions), show_progress_bar=False)
        return unit(np.asarray(vectors, np.float32))

    return f"sentence-transformers:{model}", embed


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
