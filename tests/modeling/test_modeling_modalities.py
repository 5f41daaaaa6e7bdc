"""The island's tables: modalities as mcompose has them, each in the order that files depend on, and families in one."""

import ast
from pathlib import Path

from transformers import CONFIG_MAPPING

from mcompose import modalities
from mcompose.modeling import families

TABLES = {"families.py", "features.py"}
"""The table, and the functions that it names."""
NOT_FACTS = {"align", "llama", "mcompose", "mcompose_points"}
"""A setting of views, what a config without a type is, and the package's own types, which other tests may have
registered."""


def test_both_rooms_name_the_same_modalities():
    assert sorted(families.MODALITIES) == sorted(modalities.MODALITIES)
    assert families.EXPERT_MODALITIES == modalities.EXPERT_MODALITIES
    assert families.PLACEHOLDERS == modalities.PLACEHOLDERS
    assert families.PROCESSOR_ARGUMENTS.keys() == set(modalities.MODALITIES)


def test_the_orders_that_files_depend_on():
    assert families.TYPE_IDS == {"image": 1, "video": 2, "audio": 3, "points": 4, "expert": 5}
    assert families.MODALITIES == ("image", "video", "audio", "points")
    assert modalities.MODALITIES == ("image", "audio", "video", "points")


def test_facts_about_one_family_stand_in_one_table():
    named = {}
    for path in Path(families.__file__).parent.rglob("*.py"):
        found = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        if path.name not in TABLES:
            named[path.name] = sorted(found & set(CONFIG_MAPPING) - NOT_FACTS)
    assert {name: types for name, types in named.items() if types} == {}
