"""Media against what they claim to show: frequencies by FFT, blinks and clusters by counting, files by reading back."""

from __future__ import annotations

import builtins
import wave

import numpy as np
import pytest
from PIL import Image, ImageSequence

from mcompose.errors import RequestError
from mcompose.lab.media import FRAMES, KEYPAD, SAMPLE_RATE, draw, load_digits
from mcompose.lab.media_files import write_media
from mcompose.lab.randomness import generator_for


@pytest.mark.parametrize("number", range(10))
def test_lab_tones_have_the_keypad_frequencies(number) -> None:
    for item in range(5):
        tone = draw("audio", number, generator=generator_for(item, "tone")).astype(float)
        spectrum = np.abs(np.fft.rfft(tone * np.hanning(len(tone))))
        hertz = np.fft.rfftfreq(len(tone), 1 / SAMPLE_RATE)
        low, high = (hertz < 1050), (hertz >= 1050)
        found = hertz[low][spectrum[low].argmax()], hertz[high][spectrum[high].argmax()]
        assert found == pytest.approx(KEYPAD[number], abs=SAMPLE_RATE / len(tone))


def test_lab_keypad_frequencies_are_those_of_the_standard() -> None:
    assert KEYPAD[1] == (697, 1209)
    assert KEYPAD[6] == (770, 1477)
    assert KEYPAD[0] == (941, 1336)


@pytest.mark.parametrize("number", range(10))
def test_lab_clips_blink_that_often(number) -> None:
    for item in range(20):
        clip = draw("video", number, generator=generator_for(item, "clip")).astype(float)
        assert clip.shape == (FRAMES, 16, 16)
        # The brightest 8 x 8 window of a lit frame stands far above the noise around 60.
        windows = np.lib.stride_tricks.sliding_window_view(clip, (8, 8), axis=(1, 2)).mean(axis=(-1, -2))
        lit = windows.max(axis=(1, 2)) > 110
        assert np.count_nonzero(np.diff(np.concatenate([[False], lit]).astype(int)) == 1) == number
        assert lit.sum() == number


@pytest.mark.parametrize("number", range(10))
def test_lab_clouds_have_that_many_clusters(number) -> None:
    for item in range(10):
        cloud = draw("points", number, generator=generator_for(item, "cloud")).astype(float)
        assert cloud.shape == (128, 3)
        gaps = np.linalg.norm(cloud[:, None] - cloud[None], axis=-1)
        crowded = (gaps < 0.1).sum(axis=1) >= 4
        assert _components(gaps[np.ix_(crowded, crowded)] < 0.15) == number


def _components(near: np.ndarray) -> int:
    left, found = set(range(len(near))), 0
    while left:
        found += 1
        edge = [left.pop()]
        while edge:
            reached = {int(i) for i in np.flatnonzero(near[edge.pop()])} & left
            left -= reached
            edge += reached
    return found


def test_lab_items_depend_on_their_generator_alone() -> None:
    for modality in ("audio", "video", "points"):
        first = draw(modality, 5, generator=generator_for(3, "item"))
        np.testing.assert_array_equal(first, draw(modality, 5, generator=generator_for(3, "item")))
        assert not np.array_equal(first, draw(modality, 5, generator=generator_for(4, "item")))


def test_lab_digits_are_split_by_image() -> None:
    digits = load_digits(generator=generator_for(0, "digits"))
    train = {image.tobytes() for images in digits.train.values() for image in images}
    test = {image.tobytes() for images in digits.test.values() for image in images}
    assert not train & test
    assert sum(map(len, digits.train.values())) + sum(map(len, digits.test.values())) == 1797
    assert all(abs(len(digits.test[n]) / (len(digits.test[n]) + len(digits.train[n])) - 0.25) < 0.01 for n in range(10))


def test_lab_missing_extra_is_said_with_the_install_line(monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError, match=r"need scikit-learn.*pip install 'mcompose\[lab\]'"):
        load_digits(generator=generator_for(0, "digits"))


def test_lab_media_files_keep_every_value(tmp_path) -> None:
    clip = draw("video", 3, generator=generator_for(0, "clip"))
    write_media(tmp_path / "clip.gif", "video", clip)
    with Image.open(tmp_path / "clip.gif") as opened:
        frames = np.stack([np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(opened)])
    np.testing.assert_array_equal(frames, clip)
    image = load_digits(generator=generator_for(0, "digits")).test[7][0]
    write_media(tmp_path / "digit.png", "image", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "digit.png")), image)
    tone = draw("audio", 4, generator=generator_for(0, "tone"))
    write_media(tmp_path / "tone.wav", "audio", tone)
    with wave.open(str(tmp_path / "tone.wav")) as file:
        assert file.getframerate() == SAMPLE_RATE
        np.testing.assert_array_equal(np.frombuffer(file.readframes(10_000), "<i2"), tone)
    cloud = draw("points", 2, generator=generator_for(0, "cloud"))
    write_media(tmp_path / "cloud.npy", "points", cloud)
    np.testing.assert_array_equal(np.load(tmp_path / "cloud.npy"), cloud)
