"""Kept features are found again by what they depend on, and by nothing less."""

import pytest
import torch

from mcompose.align.features.encoder_identity import encoder_identity, feature_key


class _Part:
    def __init__(self, **settings):
        self.settings = settings

    def to_dict(self):
        return self.settings


class _Whole:
    def __init__(self, **parts):
        self.__dict__.update(parts)


WEIGHTS = {"first": torch.arange(4.0), "second": torch.ones(2, 2)}
BASE = {"settings": {"layer": -1}, "processor": _Whole(image_processor=_Part(size=32)), "weights": WEIGHTS}


def identity(**changed):
    found = BASE | changed
    return encoder_identity(found["settings"], found["processor"], found["weights"].items())


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"layer": -2}},
        {"processor": _Whole(image_processor=_Part(size=64))},
        {"processor": _Part(size=32)},
        {"processor": None},
        {"weights": WEIGHTS | {"first": torch.tensor([0.0, 1.0, 2.0, 4.0])}},
        {"weights": WEIGHTS | {"first": torch.arange(4.0).view(torch.int32)}},
        {"weights": {"first": WEIGHTS["first"], "other": WEIGHTS["second"]}},
    ],
    ids=["layer", "size", "part as whole", "no processor", "one value", "same bytes of another type", "name"],
)
def test_another_encoder_has_another_identity(changed):
    assert identity(**changed) != identity()


def test_the_same_encoder_loaded_again_has_the_same_identity():
    again = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    assert identity(weights=again, processor=_Whole(image_processor=_Part(size=32))) == identity()


def test_keys_tell_items_and_encoders_apart():
    assert len({feature_key(b"one", "a"), feature_key(b"two", "a"), feature_key(b"one", "b")}) == 3
