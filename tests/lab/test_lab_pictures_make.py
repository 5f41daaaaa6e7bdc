"""The family as it lies on disk: tasks, records, encoders and the general model."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, LlavaForConditionalGeneration

from mcompose.align.data.samples import parse_record
from mcompose.errors import OutputError
from mcompose.evaluate.jsonl_tasks import load_lines
from mcompose.lab.pictures.encoders import build_encoder
from mcompose.lab.pictures.general import _looked, _looks, _looks_of, _row, make_tokenizer
from mcompose.lab.pictures.ink import COLOURS
from mcompose.lab.pictures.make import make_pictures
from mcompose.lab.pictures.picture import DOMAINS, EXPERTS, Mark
from mcompose.lab.pictures.pretrain import COARSE, coarse_targets, general_shares
from mcompose.lab.pictures.questions import TASKS, questions_of
from mcompose.lab.pictures.reading import FIELDS, classes, make_pool, overlaps, token_marks
from mcompose.lab.pictures.render import render_many
from mcompose.lab.pictures.settings import PicturesData, PicturesSettings
from mcompose.lab.randomness import deterministic_torch
from mcompose.lab.settings import FitSettings
from mcompose.recipe import load_recipe

pytestmark = pytest.mark.skipif(find_spec("vega_datasets") is None, reason="vega-datasets is not installed")

_SHORT = FitSettings(2, 1e-3, 4)
TINY = PicturesSettings(
    width=32, layers=1, pool=12, checked=8, probed=12, general=_SHORT, base=_SHORT, probe=_SHORT,
    experts=dict.fromkeys(EXPERTS, _SHORT), data=PicturesData(test=16, questions=20, train=12, asked=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("lab") / "pictures", settings=TINY, workers=0).folder


def test_every_task_can_be_read_and_scored(family: Path) -> None:
    labels = {row["path"]: row for row in map(json.loads, (family / "data/labels.jsonl").read_text().splitlines())}
    for name in TASKS:
        task = load_lines(family / "data" / f"{name}.jsonl")
        assert task.name == name
        assert len({(item.inputs[0].path, item.question) for item in task.items}) == len(task.items)
        for item in task.items:
            label = labels[str(item.inputs[0].path.relative_to(family / "data"))]
            assert name == "general-kind" or label["domain"] == TASKS[name]
            if name == "chart-value":
                place = label["truth"]["names"].index(item.question.split()[2])
                assert int(item.answer.replace(" ", "")) == label["truth"]["values"][place]
            if name == "table-cell":
                _, row, _, column, *_ = item.question.split()
                truth = label["truth"]
                value = truth["values"][truth["rows"].index(row)][truth["columns"].index(column)]
                assert int(item.answer.replace(" ", "")) == value


def test_records_are_conversations_about_training_pictures(family: Path) -> None:
    held_out = {path.read_bytes() for path in (family / "data/media").rglob("*.png")}
    for domain in DOMAINS:
        file = family / "data/train" / f"{domain}.jsonl"
        for record in map(json.loads, file.read_text().splitlines()):
            messages = parse_record(record, layout="llava", folder=file.parent)
            assert record["domain"] == domain
            medium, said = messages[0]["content"]
            assert said["text"].startswith(" ")
            assert Path(medium["path"]).read_bytes() not in held_out


def test_experts_are_plain_checkpoints_of_their_classes(family: Path) -> None:
    classes_of = {"chart": "Pix2StructVisionModel", "table": "Dinov2Model", "document": "SiglipVisionModel"}
    for name in EXPERTS:
        written = json.loads((family / name / "config.json").read_text())["architectures"]
        assert written == [classes_of[name]]
        _, told = getattr(transformers, written[0]).from_pretrained(family / name, output_loading_info=True)
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
        processor = AutoImageProcessor.from_pretrained(family / name, backend="pil")
        fresh = build_encoder(name)
        images = [Image.open(path).convert("RGB") for path in sorted((family / "data/media" / name).glob("*.png"))[:4]]
        made = processor(images=images, return_tensors="pt")
        for key, values in fresh.prepare(images).items():
            assert torch.equal(made[key], values)


def test_base_is_an_ordinary_llava(family: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(family / "base")
    processor = AutoProcessor.from_pretrained(family / "base", backend="pil")
    image = Image.open(next(iter(sorted((family / "data/media/none").glob("*.png"))))).convert("RGB")
    batch = processor(text="<image> what is shown ?", images=image, return_tensors="pt")
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == 16
    assert batch["pixel_values"].shape[-2:] == (32, 32)
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_recipe_names_the_experts(family: Path) -> None:
    recipe = load_recipe(family / "recipe.yaml").recipe
    assert list(recipe.compose.experts) == list(EXPERTS)
    for number in (1, 2):
        assert [spec.domain for spec in recipe.align.stages[number].data] == list(DOMAINS)


def test_same_seed_same_bytes_and_the_cache_knows_its_settings(family: Path, tmp_path: Path) -> None:
    again = make_pictures(tmp_path / "pictures", settings=TINY, workers=0).folder
    for path in sorted(family.rglob("*")):
        if path.is_file() and path.name != "lab.json":
            assert path.read_bytes() == (again / path.relative_to(family)).read_bytes(), path
    stamp = (again / "base/model.safetensors").stat().st_mtime_ns
    make_pictures(again, settings=TINY, workers=0)
    assert (again / "base/model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(OutputError, match="seed 1"):
        make_pictures(again, seed=1, settings=TINY, workers=0)


@pytest.mark.parametrize("name", EXPERTS)
def test_tokens_look_where_their_boxes_say(name: str) -> None:
    """A square painted over one patch changes the inputs of the token whose box it is, and of no other."""
    encoder = build_encoder(name)
    picture = render_many(name, 1, seed=0, purpose="boxes")[0]
    inputs = encoder.prepare([picture.image])
    boxes = encoder.token_boxes(inputs, [picture.image.size])[0]
    for place in (0, 13, 40):
        left, top, right, bottom = (round(float(edge)) for edge in boxes[place])
        assert (right - left, bottom - top) == (12, 12)
        painted = picture.image.copy()
        painted.paste((255, 0, 255), (left, top, right, bottom))
        painted.paste((0, 255, 0), (left + 3, top + 3, right - 3, bottom - 3))
        other = encoder.prepare([painted])
        if "flattened_patches" in inputs:  # it takes out each picture's own mean and spread: compare shapes of patches
            one, two = (made["flattened_patches"][0, :, 2:] for made in (inputs, other))
            one, two = (rows - rows.mean(dim=1, keepdim=True) for rows in (one, two))
            one, two = (rows / (rows.norm(dim=1, keepdim=True) + 1e-2) for rows in (one, two))
            moved = (one - two).abs().amax(dim=1) > 0.02
        else:
            both = (made["pixel_values"] for made in (inputs, other))
            one, two = (torch.nn.functional.unfold(pixels, 12, stride=12)[0].T for pixels in both)
            moved = (one - two).abs().amax(dim=1) > 1e-6
        assert np.flatnonzero(moved.numpy()).tolist() == [place]


def test_padding_of_charts_has_no_box_and_no_mark() -> None:
    encoder = build_encoder("chart")
    pool = make_pool(encoder, render_many("chart", 9, seed=0, purpose="padding"), domain="chart")
    mask = pool.inputs["attention_mask"].float().numpy() > 0
    counts = {int(count) for count in mask.sum(axis=1)}
    assert counts <= {56, 63, 66}
    assert (pool.boxes[~mask] == 0).all()
    assert (pool.targets.numpy()[~mask][:, 0] == 0).all()


def test_a_patch_is_asked_for_the_mark_that_covers_it() -> None:
    boxes = np.array([[0, 0, 12, 12], [12, 0, 24, 12], [84, 84, 96, 96]], dtype=float)
    marks = [Mark((0, 0, 18, 12), {"row": "Jan"}), Mark((18, 0, 36, 12), {"row": "Feb", "tens": "1", "units": "2"})]
    assert overlaps(marks, boxes).tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    row = FIELDS["table"]["row"]
    assert classes(marks[1], "table") == [row.index("Feb") + 1, 0, 2, 3]


def test_words_are_tokens() -> None:
    tokenizer = make_tokenizer()
    said = "write row Jan 1 2 ; 0 3"
    ids = tokenizer(said)["input_ids"]
    assert len(ids) == 1 + len(said.split())
    assert tokenizer.decode(ids[1:]) == said
    turns = [{"role": "user", "content": "<image> what is shown ?"}, {"role": "assistant", "content": "bar"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<image> what is shown ? bar<eos>"
    assert tokenizer(text)["input_ids"][-1] == tokenizer.eos_token_id


def test_deterministic_start_of_encoders() -> None:
    with deterministic_torch(0, "x"):
        one = build_encoder("table").model.state_dict()
    with deterministic_torch(0, "x"):
        other = build_encoder("table").model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_general_pictures_are_drawn_as_often_as_asked() -> None:
    pictures = render_many("none", 4, seed=0, purpose="shares") + render_many("table", 12, seed=0, purpose="shares")
    shares = general_shares(pictures, general=0.6)
    assert shares[:4].tolist() == pytest.approx([0.15] * 4)
    assert shares[4:].tolist() == pytest.approx([0.4 / 12] * 12)


def test_coarse_labels_are_those_of_the_truth() -> None:
    for picture in render_many("none", 6, seed=0, purpose="coarse") + render_many("chart", 6, seed=0, purpose="coarse"):
        row = dict(zip(COARSE, coarse_targets([picture])[0].tolist(), strict=True))
        truth = picture.truth
        if picture.kind == "digit":
            assert row["digit"] == truth["digit"]
            assert row["colour"] == row["count"] == -100
        elif picture.kind == "shapes":
            assert list(COLOURS)[row["colour"]] == truth["colour"]
            assert row["count"] == truth["count"]
            assert (row["side"] == -100) == (truth["side"] == "")
        else:
            assert row["count"] == len(truth["names"])
            assert truth["values"][row["largest"]] == max(truth["values"])


def test_rows_told_in_marks_point_at_the_mark_of_each_next_word() -> None:
    words = make_tokenizer().get_vocab()
    said = {place: word for word, place in words.items()}
    for picture in render_many("table", 5, seed=0, purpose="looks"):
        questions = [question for question in questions_of(picture) if question.sources][:3]
        ids, labels = _row(["<image>"] * len(picture.marks), questions, words)
        for place, source in _looks(questions, start=1 + len(picture.marks)):
            assert said[ids[source]] == "<image>"
            assert labels[place + 1] == ids[place + 1]
            assert said[ids[place + 1]] in picture.marks[source - 1].fields.values()


def test_patches_belong_to_the_mark_that_covers_most_of_them() -> None:
    boxes = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10], [30, 0, 40, 10]], dtype=float)
    marks = (Mark((0, 0, 14, 10), {"word": "a"}), Mark((14, 0, 21, 10), {"word": "b"}))
    # The second patch: 4 of 10 columns are the first mark's, 6 the second's. The third: 1 of 10, which is too little.
    assert token_marks(marks, boxes).tolist() == [0, 1, -1, -1]
    assert token_marks((), boxes).tolist() == [-1] * 4


def test_rows_with_pictures_point_at_patches_over_the_next_word() -> None:
    words = make_tokenizer().get_vocab()
    encoder = build_encoder("general", general_side=64)
    tokens = (encoder.side // encoder.patch) ** 2
    pointed = 0
    for picture in render_many("table", 5, seed=0, purpose="looks"):
        boxes = encoder.token_boxes({}, [picture.image.size])[0]
        questions = [question for question in questions_of(picture) if question.sources][:3]
        ids, _ = _row(["<image>"] * tokens, questions, words)
        said = {place: word for word, place in words.items()}
        looks = _looks_of(questions, picture, "picture", tokens, token_marks(picture.marks, boxes))
        for place, patches in looks:
            assert all(said[ids[patch]] == "<image>" for patch in patches)
            over = overlaps(picture.marks, boxes[np.array(patches) - 1]).argmax(axis=1)
            assert all(said[ids[place + 1]] in picture.marks[mark].fields.values() for mark in over)
            pointed += 1
        assert _looks_of(questions, picture, "picture", tokens, None) == []
        assert _looks_of(questions, picture, "words", tokens, token_marks(picture.marks, boxes)) == []
    assert pointed > 20


def test_looking_at_any_patch_of_a_word_counts() -> None:
    attentions = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]], [[0.25] * 4, [0.0, 0.5, 0.5, 0.0]]])
    looks = [[(0, (1, 2)), (1, (0,))], [(1, (1, 2))]]
    wanted = -(np.log(0.5) + np.log(0.7) + np.log(1.0)) / 3
    assert float(_looked(attentions, looks)) == pytest.approx(wanted, abs=1e-5)


def test_a_general_encoder_that_reads_sees_larger_pictures(tmp_path: Path) -> None:
    settings = replace(TINY, name="pictures-reading", general_side=64, general_reads=True, base_general=0.3)
    family = make_pictures(tmp_path / "reading", settings=settings, workers=0)
    assert family.name == "pictures-reading"
    model = LlavaForConditionalGeneration.from_pretrained(family.base)
    assert model.config.vision_config.image_size == 64
    assert model.config.image_seq_length == 64
    assert make_pictures(tmp_path / "reading", settings=settings).figures == family.figures
    with pytest.raises(OutputError, match="contains a lab family of another kind"):
        make_pictures(tmp_path / "reading", settings=TINY)
