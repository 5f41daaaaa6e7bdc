"""The family ``pictures``: charts, tables, formulas and pages drawn from real numbers, with small frozen experts.

The general encoder sees a picture at 32 pixels, where text is not readable; an expert sees the full picture. In the
family ``pictures-reading`` the general encoder sees 64 pixels and is trained to read. Importing this package does not
import torch. Read ``picture``, ``sources`` and ``ink`` first, then ``charts``, ``tables``, ``documents`` and
``scenes``; then ``questions``; then ``encoders``, ``reading``, ``pretrain`` and ``general``.

Paper: Peng et al. 2024, arXiv:2412.05983; the family tests its method, with far smaller experts than the paper's.
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
