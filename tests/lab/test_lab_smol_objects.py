"""Objects of a library, sounds, splits and the files on disk."""

from __future__ import annotations

import io
import json
import wave
import zipfile

import lab_smol_stand_ins as stand_ins
import numpy as np
import pytest
from PIL import Image

from mcompose.errors import RequestError, StorageError
from mcompose.evaluate import load_task
from mcompose.lab.randomness import generator_for
from mcompose.lab.smol import media as smol_media
from mcompose.lab.smol.media import cloud_copy, items_of, split_things
from mcompose.lab.smol.objects import SURFACE_POINTS, kind_of, read_mesh, read_things, sample_surface
from mcompose.lab.smol.parts import load_objects, save_objects
from mcompose.lab.smol.questions import KINDS, MODALITIES
from mcompose.lab.smol.speech import SPOKEN_SAMPLES, Utterance, _trimmed, place_sound, speak
from mcompose.lab.smol.tasks import SMOL_TASK_NAMES, write_smol_data

SQUARE = "v 0 0 0\nv 4 0 0\nv 4 2 0\nv 0 2 0\nvt 0 0\nf 1/1 2/1/1 3//1 -1\n"


def test_smol_names_tell_kinds() -> None:
    told = {
        "Winchester sofa": "couch", "Armchair": "chair", "Desk lamp": "lamp", "Desk": "table", "Table fan": None,
        "Glass door cabinet": "cabinet", "Shower door": "door", "Smart car": "car", "Palm tree": "tree",
        "Plant box": None, "Sitting female 02": "person", "Square RJ45 plug": "plug", "Wine bottle": "bottle",
        "Double French window 3 panes": "window", "Dog house": None, "Table tennis bat": None,
    }  # fmt: skip
    assert {name: kind_of(name) for name in told} == told


def library(path, mesh=SQUARE, **changes):
    entry = {"name": "Old chair", "icon": "/a/i.png", "model": "/a/m.obj", "width": "100", "depth": "1", "height": "50"}
    other = entry | {"name": "Dog house"}
    lines = [f"{k}#{n}={v}" for n, one in ((1, other), (2, entry | changes)) for k, v in one.items()]
    icon = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(icon, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "# a comment\n" + "\n".join(lines))
        archive.writestr("a/i.png", icon.getvalue())
        archive.writestr("a/m.obj", mesh)


def test_smol_library_gives_known_kinds_with_icon_and_cloud(tmp_path) -> None:
    library(tmp_path / "one.sh3f")
    (thing,) = read_things(tmp_path, generator=generator_for(0, "t"))
    assert (thing.name, thing.kind) == ("Old chair", "chair")
    assert thing.icon.shape == (128, 128, 3)
    assert (thing.icon == 255).all()  # transparent is white
    assert thing.cloud.shape == (SURFACE_POINTS, 3)
    assert np.abs(thing.cloud[:, 0]).max() == pytest.approx(1.0, abs=0.02)  # half of 2, times the root of 1 m
    assert np.abs(thing.cloud[:, 1]).max() == pytest.approx(0.5, abs=0.02)
    library(tmp_path / "one.sh3f", width="400")
    (large,) = read_things(tmp_path, generator=generator_for(0, "t"))
    np.testing.assert_allclose(large.cloud, 2 * thing.cloud)
    library(tmp_path / "one.sh3f", model="/a/none.obj")
    with pytest.raises(StorageError, match="'Old chair' does not match the catalogue"):
        read_things(tmp_path, generator=generator_for(0, "t"))


def test_smol_mesh_splits_faces_and_counts_from_the_end() -> None:
    corners, triangles = read_mesh(SQUARE)
    assert corners.tolist() == [[0, 0, 0], [4, 0, 0], [4, 2, 0], [0, 2, 0]]
    assert triangles.tolist() == [[0, 1, 2], [0, 2, 3]]
    with pytest.raises(StorageError, match="no faces"):
        read_mesh("v 0 0 0\n")


def test_smol_surface_is_sampled_by_area() -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 1, 5]], dtype=float)
    cloud = sample_surface(corners, np.array([[0, 1, 2], [3, 4, 5]]), generator=generator_for(0, "s"), count=4000)
    upper = cloud[:, 2] > 0
    assert upper.mean() == pytest.approx(0.75, abs=0.03)  # areas are 1/2 and 3/2
    assert set(np.round(np.unique(cloud[:, 2]), 5)) == {-1.0, 1.0}  # points lie on the triangles
    places = cloud * 2.5 + [1.5, 0.5, 2.5]
    inside = places[:, 0] / np.where(upper, 3, 1) + places[:, 1]
    assert inside.max() <= 1 + 1e-5
    assert places.min() >= -1e-5
    assert places[~upper, 0].mean() == pytest.approx(1 / 3, abs=0.03)  # the middle of a triangle


def test_smol_things_are_kept_and_split_by_object(tmp_path) -> None:
    things = stand_ins.some_things()
    save_objects(things, tmp_path / "things.npz")
    again = load_objects(tmp_path / "things.npz")
    assert [(t.name, t.kind) for t in again] == [(t.name, t.kind) for t in things]
    assert all(
        np.array_equal(a.cloud, b.cloud) and np.array_equal(a.icon, b.icon) for a, b in zip(again, things, strict=True)
    )
    train, test = split_things(things, share=0.25, seed=0)
    assert sorted(t.name for t in train + test) == sorted(t.name for t in things)
    assert [t.kind for t in test] == list(KINDS)
    other = split_things(things, share=0.25, seed=1)[1]
    assert [t.name for t in test] == [t.name for t in split_things(things, share=0.25, seed=0)[1]]
    assert [t.name for t in test] != [t.name for t in other]


def test_smol_sound_is_placed_whole_and_trimmed() -> None:
    word = np.full(1000, 8000, dtype=np.int16)
    sound = place_sound(word, generator=generator_for(0, "p"), noise=0.0)
    assert sound.shape == (SPOKEN_SAMPLES,)
    (loud,) = np.nonzero(sound)
    assert (len(loud), loud[-1] - loud[0] + 1) == (1000, 1000)
    assert np.array_equal(sound, place_sound(word, generator=generator_for(0, "p"), noise=0.0))
    noisy = place_sound(word, generator=generator_for(0, "p"), noise=0.1)
    assert (noisy != 0).mean() > 0.99
    long = np.full(2 * SPOKEN_SAMPLES, 8000, dtype=np.int16)
    assert (place_sound(long, generator=generator_for(0, "p"), noise=0.0) > 0).all()
    padded = np.concatenate([np.zeros(500), np.full(800, 5000), np.zeros(700)]).astype(np.int16)
    assert len(_trimmed(padded, rate=16000)) == 800
    assert len(_trimmed(np.repeat(padded, 2), rate=32000)) == pytest.approx(800, abs=2)


def test_smol_speech_that_does_not_run_is_said(tmp_path) -> None:
    with pytest.raises(RequestError, match="eSpeak NG does not run on this machine"):
        speak([Utterance("chair", "en", 200, 50)], tmp_path / "espeak-ng-data")


def test_smol_clouds_are_altered_in_training_only() -> None:
    cloud = stand_ins.some_things()[0].cloud
    plain = cloud_copy(cloud, generator=generator_for(0, "c"), altered=False)
    rows = {row.tobytes() for row in cloud}
    assert len(plain) == 256
    assert all(row.tobytes() in rows for row in plain)
    turned = cloud_copy(cloud, generator=generator_for(0, "c"), altered=True)
    assert not any(row.tobytes() in rows for row in turned)
    np.testing.assert_allclose(turned[:, 1], plain[:, 1], rtol=0.16, atol=0.05)  # the vertical is stretched, not turned


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(smol_media, "speak", stand_ins.hummed)
    _, test = split_things(stand_ins.some_things(), share=0.25, seed=0)
    items = {m: items_of(m, test, stand_ins.TINY, seed=0, split="test", library=tmp_path) for m in MODALITIES}
    write_smol_data(tmp_path / "data", items, stand_ins.TINY, seed=0)
    return tmp_path / "data"


def test_smol_files_show_what_the_questions_are_about(written) -> None:
    assert sorted(path.stem for path in written.glob("*.jsonl")) == sorted(SMOL_TASK_NAMES)
    for name in SMOL_TASK_NAMES:
        task = load_task(written / f"{name}.jsonl")
        assert task.metric == ("joint_exact_match" if name.startswith("joint-") else "exact_match")
        rows = [json.loads(line) for line in (written / f"{name}.jsonl").read_text().splitlines()[1:]]
        for row in rows:
            kinds = [KINDS[number] for number in row["numbers"]]
            if not name.startswith("text-"):
                assert [entry["path"].rsplit("-", 1)[1].partition(".")[0] for entry in row["inputs"]] == kinds
                assert len({entry["modality"] for entry in row["inputs"]}) == len(kinds)
    groups = {tuple(sorted(e["modality"] for e in row["inputs"])) for row in rows_of(written / "joint-which.jsonl")}
    assert groups == {("audio", "image"), ("image", "points"), ("audio", "points")}
    with wave.open(str(next((written / "media/audio").glob("*.wav")))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (16000, SPOKEN_SAMPLES)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]
