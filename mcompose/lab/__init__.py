"""The lab: small families of real checkpoints, trained in minutes, on which composition is measured.

``make_numbers`` trains the family ``numbers``; ``open_family`` reads one; ``family_scores``, ``table`` and
``plot_rows`` make its tables. Importing this room is free of torch; scikit-learn and matplotlib are the extra
``mcompose[lab]``.

Read ``words`` and ``questions`` first, then ``media``, ``towers``, ``fit``, ``donors`` and ``make``.
"""

from mcompose.lab.family import LabFamily, open_family, recipe_text
from mcompose.lab.make import Progress, make_numbers
from mcompose.lab.report import Evaluator, Row, Scores, family_scores, plot_rows, table, table_json, wide_table
from mcompose.lab.settings import DataSettings, FitSettings, NumbersSettings

__all__ = [
    "DataSettings",
    "Evaluator",
    "FitSettings",
    "LabFamily",
    "NumbersSettings",
    "Progress",
    "Row",
    "Scores",
    "family_scores",
    "make_numbers",
    "open_family",
    "plot_rows",
    "recipe_text",
    "table",
    "table_json",
    "wide_table",
]
