"""Extraction: how well a table, a page or a value was read off a picture.

Each metric is a pure function of two texts in its own file; ``graded`` has their names in task files. Their libraries
are an extra, ``mcompose[extraction]``, imported where they are used.
"""

from mcompose.evaluate.extraction.cider import cider_of_one, corpus_cider
from mcompose.evaluate.extraction.edit_distance import anls, edit_similarity, normalised_edit_distance
from mcompose.evaluate.extraction.graded import GRADED, GROUPS, Graded
from mcompose.evaluate.extraction.reading_errors import BadReferenceError
from mcompose.evaluate.extraction.relaxed import relaxed_match
from mcompose.evaluate.extraction.scrm import average_precision, scrm_similarity
from mcompose.evaluate.extraction.table_reading import read_table
from mcompose.evaluate.extraction.teds import teds
from mcompose.evaluate.extraction.text_overlap import (
    bleu,
    corpus_bleu,
    meteor,
    meteor_wordnet,
    nltk_bleu,
    word_f1,
    word_precision,
    word_recall,
)

__all__ = [
    "GRADED",
    "GROUPS",
    "BadReferenceError",
    "Graded",
    "anls",
    "average_precision",
    "bleu",
    "cider_of_one",
    "corpus_bleu",
    "corpus_cider",
    "edit_similarity",
    "meteor",
    "meteor_wordnet",
    "nltk_bleu",
    "normalised_edit_distance",
    "read_table",
    "relaxed_match",
    "scrm_similarity",
    "teds",
    "word_f1",
    "word_precision",
    "word_recall",
]
