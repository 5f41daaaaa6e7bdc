"""Task files and media: what is read, and the sentence for each thing that is wrong."""

from __future__ import annotations

import json
import sys
import wave

import numpy as np
import pytest
from PIL import Image

from mcompose.errors import RequestError
from mcompose.evaluate import find_tasks, load_task
from mcompose.media import read_media

HEADER = {"task": "demo", "version": 1, "metric": "letter", "modalities": ["image"], "chance": 0.25}


def write_task(folder, *rows, header=HEADER):
    path = folder / "demo.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in (header, *rows)) + "\n")
    return path


def item(path="pixel.png", text="image <image>", **changes):
    return {
        "id": "7",
        "inputs": [{"modality": "image", "path": path, "text": text}],
        "question": "which ?",
        "answer": "A",
    } | changes


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / "pixel.png")
    return tmp_path


def test_evaluate_task_is_read_with_paths_beside_it(folder) -> None:
    task = load_task(write_task(folder, item(), item(id="8")))
    assert (task.name, task.metric, task.chance, len(task.items)) == ("demo", "letter", 0.25, 2)
    assert task.items[0].inputs[0].path == folder / "pixel.png"
    assert load_task(folder / "demo.jsonl", limit=1).items == task.items[:1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (item(path="lost.png"), r"demo.jsonl:2: the image .*lost.png is missing"),
        (item(text="image"), "holds <image> once"),
        (item(text="<image> <image>"), "holds <image> once"),
        (item(question=3), "'question' is missing or no str"),
        (item(inputs=[{"modality": "smell", "text": "x"}]), "'smell' is not a modality"),
        (item(inputs=["x"]), "an input is an object"),
        ("{oops", r"demo.jsonl:2: this line is not JSON"),
        ("[1]", "not a JSON object"),
    ],
)
def test_evaluate_bad_lines_are_named(folder, row, message) -> None:
    with pytest.raises(RequestError, match=message):
        load_task(write_task(folder, row))


def test_evaluate_bad_headers_are_named(folder) -> None:
    with pytest.raises(RequestError, match=r"No metric is called 'blue'\. Did you mean 'bleu'"):
        load_task(write_task(folder, item(), header=HEADER | {"metric": "blue"}))
    with pytest.raises(RequestError, match=r"demo.jsonl:1: 'task' is missing"):
        load_task(write_task(folder, item(), header={"version": 1, "metric": "letter", "modalities": []}))
    with pytest.raises(RequestError, match="asks nothing"):
        load_task(write_task(folder))
    (folder / "empty.jsonl").write_text("")
    with pytest.raises(RequestError, match="is empty"):
        load_task(folder / "empty.jsonl")


def test_evaluate_tasks_are_files_or_folders(folder) -> None:
    path = write_task(folder, item())
    assert find_tasks([folder, str(path)]) == [path, path]
    with pytest.raises(RequestError, match="There is no task at"):
        find_tasks([folder / "nothing.jsonl"])
    (folder / "bare").mkdir()
    with pytest.raises(RequestError, match="holds no task file"):
        find_tasks([folder / "bare"])


def write_wav(path, samples, rate=16000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, "<i2").tobytes())


def test_evaluate_media_values(folder) -> None:
    assert read_media(folder / "pixel.png", "image").getpixel((0, 0)) == (10, 20, 30)
    write_wav(folder / "mono.wav", [0, 16384, -32768])
    np.testing.assert_array_equal(read_media(folder / "mono.wav", "audio", sampling_rate=16000), [0, 0.5, -1])
    write_wav(folder / "stereo.wav", [0, 16384, -32768, 0], channels=2)
    np.testing.assert_array_equal(read_media(folder / "stereo.wav", "audio"), [0.25, -0.5])
    frames = [Image.fromarray(np.full((2, 3), value, np.uint8)) for value in (0, 100, 255)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    clip = read_media(folder / "clip.gif", "video")
    assert clip.shape == (3, 2, 3, 3)
    assert clip[:, 0, 0, 0].tolist() == [0, 100, 255]
    np.save(folder / "cloud.npy", np.eye(3))
    assert read_media(folder / "cloud.npy", "points").dtype == np.float32


@pytest.mark.parametrize(
    ("name", "modality"), [("a.png", "image"), ("a.wav", "audio"), ("a.gif", "video"), ("a.npy", "points")]
)
def test_evaluate_broken_media_are_named_and_never_replaced(folder, name, modality) -> None:
    (folder / name).write_bytes(b"not what it says")
    with pytest.raises(RequestError, match=f"The {modality} .*{name} cannot be read"):
        read_media(folder / name, modality)
    with pytest.raises(RequestError, match=f"The {modality} .*gone-{name} is missing"):
        read_media(folder / f"gone-{name}", modality)


def test_evaluate_cut_off_media_are_errors(folder) -> None:
    write_wav(folder / "long.wav", range(1000))
    whole = (folder / "long.wav").read_bytes()
    (folder / "long.wav").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=r"long.wav cannot be read: it ends after 978 of 2000 bytes of sound"):
        read_media(folder / "long.wav", "audio")
    Image.effect_noise((64, 64), 50).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=r"cut.png cannot be read"):
        read_media(folder / "cut.png", "image")


def test_evaluate_pickles_are_never_opened(folder) -> None:
    np.save(folder / "sly.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RequestError, match=r"sly.npy cannot be read"):
        read_media(folder / "sly.npy", "points")


def test_evaluate_other_sampling_rates_are_refused(folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    write_wav(folder / "slow.wav", [0, 1], rate=8000)
    with pytest.raises(RequestError, match=r"slow.wav has 8000 Hz, but this checkpoint needs 16000 Hz"):
        read_media(folder / "slow.wav", "audio", sampling_rate=16000)
