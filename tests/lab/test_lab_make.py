"""The family at tiny step counts: same bytes for the same seed, cache, and checkpoints that load plainly."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer, LlamaForCausalLM

from mcompose.errors import OutputError, RequestError
from mcompose.lab import DataSettings, FitSettings, NumbersSettings, make_numbers, open_family
from mcompose.lab.batches import WordTable
from mcompose.lab.fit import text_config
from mcompose.lab.media import load_digits
from mcompose.lab.numbers import make as making
from mcompose.lab.numbers.donors import _answer, _encoded, adopt_language_model, make_pool, train_donor
from mcompose.lab.questions import ask
from mcompose.lab.randomness import deterministic_torch, generator_for
from mcompose.lab.towers import build_donor
from mcompose.lab.words import NUMBER_WORDS
from mcompose.modalities import MODALITIES, PLACEHOLDERS

TINY = NumbersSettings(
    width=16,
    layers=2,
    pool=20,
    checked=20,
    base=FitSettings(2, 1e-3, 4),
    encoder={modality: FitSettings(2, 1e-3, 4) for modality in MODALITIES},
    projector=FitSettings(2, 1e-3, 4),
    full=FitSettings(2, 1e-3, 4),
    data=DataSettings(test_media=10, train_media=10, single=6, joint=6),
)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lab.json")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_numbers(tmp_path_factory.mktemp("lab") / "numbers", seed=0, settings=TINY, workers=0)


def test_lab_same_seed_same_bytes_other_seed_other_bytes(family, tmp_path) -> None:
    again = make_numbers(tmp_path / "again", seed=0, settings=TINY, workers=0)
    assert digests(again.folder) == digests(family.folder)
    other = make_numbers(tmp_path / "other", seed=1, settings=TINY, workers=0)
    changed = [name for name, digest in digests(other.folder).items() if digest != digests(family.folder).get(name)]
    weights = {f"{name}/model.safetensors" for name in ("base", *MODALITIES)}
    assert weights <= set(changed)


def test_lab_leaves_the_global_generators_alone(tmp_path) -> None:
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads = torch.get_num_threads()
    with deterministic_torch(0, "x"):
        first = torch.rand(3)
        assert torch.are_deterministic_algorithms_enabled()
    with deterministic_torch(0, "x"):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_lab_second_call_opens_what_is_there(family, monkeypatch) -> None:
    monkeypatch.setattr(making, "_build", lambda *a, **k: pytest.fail("nothing is built twice"))
    assert make_numbers(family.folder, seed=0, settings=TINY) == family


def test_lab_other_settings_or_contents_are_refused(family, tmp_path) -> None:
    with pytest.raises(OutputError, match=r"another kind, seed or settings \(numbers, seed 0; requested: seed 1\)"):
        make_numbers(family.folder, seed=1, settings=TINY)
    with pytest.raises(OutputError, match="another kind, seed or settings"):
        make_numbers(family.folder, seed=0, settings=replace(TINY, pool=30))
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a lab family"):
        make_numbers(tmp_path, settings=TINY)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_lab_settings_keep_numbers_balanced() -> None:
    with pytest.raises(ValueError, match="pool is 25"):
        replace(TINY, pool=25)
    with pytest.raises(ValueError, match="test_media is 0"):
        DataSettings(test_media=0)
    assert replace(TINY, pool=30).digest(0) != TINY.digest(0) != TINY.digest(1)


def test_lab_leaves_a_strangers_partial_folder_alone(tmp_path) -> None:
    (tmp_path / "numbers.partial").mkdir()
    (tmp_path / "numbers.partial" / "thesis.txt").write_text("treasure")
    with pytest.raises(OutputError, match="contains files that mcompose did not write"):
        make_numbers(tmp_path / "numbers", settings=TINY, workers=0)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["treasure"]


def test_lab_half_made_work_never_looks_finished(tmp_path, monkeypatch) -> None:
    target = tmp_path / "numbers"

    def stopped(folder, *args, **kwargs):
        (folder / "base").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(making, "_build", stopped)
        with pytest.raises(KeyboardInterrupt):
            make_numbers(target, settings=TINY)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RequestError, match="does not contain a finished lab family"):
        open_family(target)


def test_lab_checkpoints_load_by_plain_auto_classes(family) -> None:
    assert isinstance(AutoModelForCausalLM.from_pretrained(family.base), LlamaForCausalLM)
    assert AutoTokenizer.from_pretrained(family.base)("image seven answer")["input_ids"][0] == 1
    for name, cls in (("image", "Llava"), ("audio", "GlmAsr"), ("video", "VideoLlava")):
        model, info = AutoModelForMultimodalLM.from_pretrained(family.donors[name], output_loading_info=True)
        assert type(model).__name__ == f"{cls}ForConditionalGeneration"
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
    AutoProcessor.from_pretrained(family.donors["image"])
    AutoProcessor.from_pretrained(family.donors["audio"])
    for name, file in (("video", "processing_frames"), ("points", "processing_points")):
        auto_map = json.loads((family.donors[name] / "processor_config.json").read_text())["auto_map"]
        assert auto_map["AutoProcessor"].startswith(f"{file}.")
        assert (family.donors[name] / f"{file}.py").is_file()


@pytest.mark.parametrize("modality", MODALITIES)
def test_lab_stage_two_moves_linear_layers_and_projector_only(modality) -> None:
    digits = load_digits(generator=generator_for(0, "digits"))
    with deterministic_torch(0, modality):
        base = LlamaForCausalLM(text_config(TINY))
        donor = build_donor(modality, text_config(TINY))
        adopt_language_model(donor, base)
        before = {name: value.clone() for name, value in donor.model.state_dict().items()}
        train_donor(donor, TINY, seed=0, digits=digits)
    moved = {name for name, value in donor.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in moved if "multi_modal_projector" in name}
    rest = {name for name in moved if "multi_modal_projector" not in name}
    assert rest == {name for name in before if "language_model.layers" in name and "_proj." in name}
    words = base.state_dict()["lm_head.weight"]
    assert torch.equal(donor.model.lm_head.weight[: len(words)], words)
    assert len(donor.model.lm_head.weight) == len(words) + 1


@pytest.mark.parametrize("modality", MODALITIES)
def test_lab_training_shows_what_the_processor_shows(modality) -> None:
    """Training starts from encoder tokens that are made once; the whole model gives the same logits."""
    digits = load_digits(generator=generator_for(0, "digits"))
    generator = generator_for(0, "shown")
    with deterministic_torch(0, modality):
        donor = build_donor(modality, text_config(TINY))
        donor.model.eval()
        pool = make_pool(donor, count=10, digits=digits, split="test", generator=generator)
        questions = [ask("name", 1, generator=generator) for _ in range(3)]
        table = WordTable(donor.processor.tokenizer.get_vocab())
        with torch.no_grad():
            _, logits = _answer(donor, questions, _encoded(donor, pool)[:3], table=table)
            prompts = [f"{modality} {PLACEHOLDERS[modality]} {q.text} {q.answer}" for q in questions]
            ids = donor.processor.tokenizer(
                [p.replace(PLACEHOLDERS[modality], PLACEHOLDERS[modality] * donor.tokens) for p in prompts],
                return_tensors="pt",
                padding=True,
            )
            inputs = {k: v[:3] for k, v in pool.inputs.items()}
            full = donor.model(**ids, **inputs).logits[:, -2:]
    torch.testing.assert_close(logits, full, rtol=1e-4, atol=1e-5)


def test_lab_task_files_point_at_what_they_show(family) -> None:
    for name in ("joint-common-4", "joint-sum", "video-choice"):
        lines = [json.loads(line) for line in family.tasks[name].read_text().splitlines()]
        assert lines[0]["task"] == name
        assert len(lines) == 7
        for row in lines[1:]:
            numbers = [int(Path(entry["path"]).stem) % 10 for entry in row["inputs"]]
            assert numbers == row["numbers"]
            assert all((family.folder / "data" / entry["path"]).is_file() for entry in row["inputs"])
            assert len({entry["modality"] for entry in row["inputs"]}) == len(row["inputs"])
    text = [json.loads(line) for line in family.tasks["text-common-3"].read_text().splitlines()][1:]
    for row in text:
        said = [w for w in row["inputs"][0]["text"].split() if w in NUMBER_WORDS]
        assert said == [NUMBER_WORDS[n] for n in row["numbers"]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lab_full_family_sees_and_reasons(tmp_path) -> None:
    family = make_numbers(tmp_path / "numbers", seed=0)
    assert min(family.figures["text_ceiling"].values()) >= 0.97
    assert min(family.figures["encoders"].values()) >= 0.93
    for donor in family.figures["single"].values():
        assert min(donor.values()) >= 0.9
