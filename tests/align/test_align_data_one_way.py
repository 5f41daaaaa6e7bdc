"""Training, evaluation and the processor itself make the same tensors of one item, whatever reads it."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from align_data_samples import picture, sound
from damc_sources import composed, write_natives

from mcompose.align.data.collator import Collator
from mcompose.align.data.samples import Sample
from mcompose.errors import RequestError
from mcompose.evaluate import load_evaluated_model
from mcompose.media import read_media
from mcompose.modeling import ComposedProcessor
from mcompose.modeling.processing.native_calls import sampling_rate

SOURCES = ("sees", "hears", "feels")


@pytest.fixture(scope="module")
def composition(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-way")
    natives = write_natives(folder / "natives")
    return composed(folder, natives, {name: natives / name for name in SOURCES}, {"method": "naivemc"})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    cloud = folder / "cloud.npy"
    np.save(cloud, np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32))
    return {"image": picture(folder / "a.png"), "audio": sound(folder / "a.wav"), "points": cloud}


@pytest.mark.parametrize("modality", ["image", "audio", "points"])
def test_processor_training_and_evaluation_make_the_same_tensors(composition, files, modality):
    processor = ComposedProcessor.from_pretrained(composition)
    evaluated = load_evaluated_model(composition)
    item = read_media(files[modality], modality, sampling_rate=evaluated.sampling_rate)
    text = f"USER : <{modality}> what is this ? ASSISTANT :"
    argument = {"image": "images", "audio": "audio", "points": "points"}[modality]
    wanted = dict(processor(text=text, **{argument: [item]}))

    shown = evaluated.prepare_inputs([text], {modality: [[item]]})
    template = "{% for m in messages %}{{ m.content if m.role == 'user' else ' ' + m.content }}{% endfor %}"
    collator = Collator(processor, max_length=None, chat_template=template)
    before, after = text.split(f"<{modality}>")
    parts = [{"type": "text", "text": before}, {"type": modality, "path": str(files[modality])}]
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": after}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    trained = collator([Sample((asked, answer), None, "set", 0, place="here")])

    media = [name for name in wanted if "__" in name]
    assert media
    for name in media:
        assert torch.equal(shown[name], wanted[name]), name
        assert torch.equal(trained[name], wanted[name]), name
    assert shown["input_ids"].tolist() == wanted["input_ids"].tolist()
    length = wanted["input_ids"].shape[1]
    assert trained["input_ids"][:, :length].tolist() == wanted["input_ids"].tolist()


def test_the_rate_of_a_bare_extractor_is_known_as_that_of_a_processor_with_one(tmp_path):
    """All that is loaded of Voxtral's processor is the extractor; a sound of another rate is not heard at its own."""
    extractor = transformers.WhisperFeatureExtractor(sampling_rate=16000)
    wraps = SimpleNamespace(feature_extractor=extractor)
    served = SimpleNamespace(sources={"hears": {}}, processors={"hears": extractor}, served_by={"audio": "hears"}.get)
    assert [sampling_rate(one) for one in (extractor, wraps, served, SimpleNamespace())] == [16000] * 3 + [None]
    eight = sound(tmp_path / "eight.wav", samples=8000, rate=8000)
    if importlib.util.find_spec("av"):
        heard = read_media(eight, "audio", sampling_rate=sampling_rate(served))
        assert abs(len(heard) - 16000) <= 16
    else:  # nothing here resamples: it is refused, never heard an octave too high
        with pytest.raises(RequestError, match="has 8000 Hz, but this checkpoint needs 16000 Hz"):
            read_media(eight, "audio", sampling_rate=sampling_rate(served))
