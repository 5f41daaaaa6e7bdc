"""The lab: small families of real checkpoints, trained in minutes, on which composition is measured.

``make_numbers`` and ``make_smol`` train families; ``open_family`` reads one; ``family_scores``, ``table`` and
``plot_rows`` make its tables. Importing this room does not import torch; scikit-learn and matplotlib are the extra
``mcompose[lab]``.

Each family has a folder: ``numbers`` (a tiny language model trained here), ``smol`` (real pretrained weights) and
``pictures`` (charts, tables and pages for compositions with experts). What families share is beside the folders. Read
``words``, ``questions``, ``media``, ``towers`` and ``fit`` first, then ``numbers/donors`` and ``numbers/make``; the
modules of ``smol`` mirror these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcompose.doors import lazy_names
from mcompose.lab.family import LabFamily, open_family, recipe_text
from mcompose.lab.numbers.make import make_numbers
from mcompose.lab.report import Evaluator, Row, Scores, family_scores, plot_rows, table, table_json, wide_table
from mcompose.lab.settings import DataSettings, FitSettings, NumbersSettings
from mcompose.lab.smol.make import make_smol
from mcompose.lab.smol.settings import SmolSettings

if TYPE_CHECKING:
    from mcompose.lab.checkpoints import save_points_source, save_source
    from mcompose.lab.composition import COLUMNS, Subset, differences, pool_scores, subsets, summaries
    from mcompose.lab.composition_plot import SEARCHED, plot_composition
    from mcompose.lab.decoupled import remove_group
    from mcompose.lab.fit import text_config
    from mcompose.lab.media import load_digits
    from mcompose.lab.numbers.donors import adopt_language_model, single_accuracy, train_donor
    from mcompose.lab.numbers.tasks import write_validation
    from mcompose.lab.pictures.make import make_pictures
    from mcompose.lab.pictures.settings import READING
    from mcompose.lab.randomness import deterministic_torch, generator_for
    from mcompose.lab.report import new_figure
    from mcompose.lab.smol.make import train_smol_decoupled
    from mcompose.lab.towers import Donor, build_donor

__all__ = [
    "COLUMNS",
    "READING",
    "SEARCHED",
    "DataSettings",
    "Donor",
    "Evaluator",
    "FitSettings",
    "LabFamily",
    "NumbersSettings",
    "Row",
    "Scores",
    "SmolSettings",
    "Subset",
    "adopt_language_model",
    "build_donor",
    "deterministic_torch",
    "differences",
    "family_scores",
    "generator_for",
    "load_digits",
    "make_numbers",
    "make_pictures",
    "make_smol",
    "new_figure",
    "open_family",
    "plot_composition",
    "plot_rows",
    "pool_scores",
    "recipe_text",
    "remove_group",
    "save_points_source",
    "save_source",
    "single_accuracy",
    "subsets",
    "summaries",
    "table",
    "table_json",
    "text_config",
    "train_donor",
    "train_smol_decoupled",
    "wide_table",
    "write_validation",
]

_HOME = {
    "COLUMNS": "composition",
    "Donor": "towers",
    "READING": "pictures.settings",
    "SEARCHED": "composition_plot",
    "Subset": "composition",
    "adopt_language_model": "numbers.donors",
    "build_donor": "towers",
    "deterministic_torch": "randomness",
    "differences": "composition",
    "generator_for": "randomness",
    "load_digits": "media",
    "make_pictures": "pictures.make",
    "new_figure": "report",
    "plot_composition": "composition_plot",
    "pool_scores": "composition",
    "save_points_source": "checkpoints",
    "save_source": "checkpoints",
    "single_accuracy": "numbers.donors",
    "subsets": "composition",
    "summaries": "composition",
    "remove_group": "decoupled",
    "text_config": "fit",
    "train_donor": "numbers.donors",
    "train_smol_decoupled": "smol.make",
    "write_validation": "numbers.tasks",
}
"""Names that are imported on first use, each with its module: few callers need them, and some import torch."""


__getattr__ = lazy_names(__name__, _HOME)
