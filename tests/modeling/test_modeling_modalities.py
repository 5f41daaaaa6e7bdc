"""The island's list of modalities against mcompose's own: the same names, each in the order that files depend on."""

from mcompose import modalities
from mcompose.modeling import families


def test_both_rooms_name_the_same_modalities():
    assert sorted(families.MODALITIES) == sorted(modalities.MODALITIES)
    assert families.EXPERT_MODALITIES == modalities.EXPERT_MODALITIES
    assert families.PLACEHOLDERS == modalities.PLACEHOLDERS
    assert families.PROCESSOR_ARGUMENTS.keys() == set(modalities.MODALITIES)


def test_the_orders_that_files_depend_on():
    assert families.TYPE_IDS == {"image": 1, "video": 2, "audio": 3, "points": 4, "expert": 5}
    assert families.MODALITIES == ("image", "video", "audio", "points")
    assert modalities.MODALITIES == ("image", "audio", "video", "points")
