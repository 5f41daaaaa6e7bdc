"""The family ``pictures``: charts, tables, formulas and pages drawn from real numbers, with small frozen experts.

A general encoder sees a picture at 32 pixels, where nothing written can be read; an expert sees all of it. In the
family ``pictures-reading`` the general encoder sees 64 pixels and reads what can be read there. Importing this package
is free of torch. Read ``picture``, ``sources`` and ``ink`` first, then ``charts``, ``tables``, ``documents`` and
``scenes``; then ``questions``; then ``encoders``, ``reading``, ``pretrain`` and ``general``.

Paper: Peng et al. 2024, arXiv:2412.05983, for what it is made to test; its experts are far larger ones.
"""

from mcompose.lab.pictures.make import make_pictures
from mcompose.lab.pictures.picture import DOMAINS, EXPERTS, KINDS, Mark, Picture
from mcompose.lab.pictures.questions import TASKS, Question, questions_of
from mcompose.lab.pictures.render import RENDERERS, render, render_many
from mcompose.lab.pictures.settings import READING, PicturesData, PicturesSettings

__all__ = [
    "DOMAINS",
    "EXPERTS",
    "KINDS",
    "READING",
    "RENDERERS",
    "TASKS",
    "Mark",
    "Picture",
    "PicturesData",
    "PicturesSettings",
    "Question",
    "make_pictures",
    "questions_of",
    "render",
    "render_many",
]
