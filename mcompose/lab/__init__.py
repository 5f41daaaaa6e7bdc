"""The lab: small families of real checkpoints, trained in minutes, on which composition is measured.

``make_numbers`` and ``make_smol`` train families; ``open_family`` reads one; ``family_scores``, ``table`` and
``plot_rows`` make its tables. Importing this room is free of torch; scikit-learn and matplotlib are the extra
``mcompose[lab]``.

Read ``words`` and ``questions`` first, then ``media``, ``towers``, ``fit``, ``donors`` and ``make``. The modules of the
family ``smol``, from real pretrained weights, mirror these; their names begin with ``smol_``.
"""

from mcompose.lab.family import LabFamily, open_family, recipe_text
from mcompose.lab.numbers.make import make_numbers
from mcompose.lab.report import Evaluator, Row, Scores, family_scores, plot_rows, table, table_json, wide_table
from mcompose.lab.settings import DataSettings, FitSettings, NumbersSettings
from mcompose.lab.smol.make import make_smol
from mcompose.lab.smol.settings import SmolSettings

__all__ = [
    "DataSettings",
    "Evaluator",
    "FitSettings",
    "LabFamily",
    "NumbersSettings",
    "Row",
    "Scores",
    "SmolSettings",
    "family_scores",
    "make_numbers",
    "make_smol",
    "open_family",
    "plot_rows",
    "recipe_text",
    "table",
    "table_json",
    "wide_table",
]
