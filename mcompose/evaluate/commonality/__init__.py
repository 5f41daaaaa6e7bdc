"""MCUB-style sets from captioned media: what do these inputs have in common?

Captions of different modalities that mean alike form a group (``grouping``); what all its captions say is the answer,
and what only some of them say are the wrong options (``questions``), so that one modality alone does not decide. The
set is written in the released record shape (``make``), which ``mcompose eval`` scores.

Paper: MCUB, arXiv 2402.12750, which groups by all-MiniLM-L6-v2 and has GPT-4 write the questions.
Differs: Questions also come from the captions alone, by templates, for work without a network.
"""

from mcompose.evaluate.commonality.captions import Entity, read_captions
from mcompose.evaluate.commonality.embedding import embedder, tfidf
from mcompose.evaluate.commonality.grouping import Group, group_entities
from mcompose.evaluate.commonality.make import MadeSet, MakeSettings, make_sets
from mcompose.evaluate.commonality.questions import Asked, EndpointWriter, TemplateWriter

__all__ = [
    "Asked",
    "EndpointWriter",
    "Entity",
    "Group",
    "MadeSet",
    "MakeSettings",
    "TemplateWriter",
    "embedder",
    "group_entities",
    "make_sets",
    "read_captions",
    "tfidf",
]
