"""Films and other sounds: decoded by PyAV where it is installed, and refused with a sentence where it is not."""

from __future__ import annotations

import sys
import wave

import numpy as np
import pytest

from mcompose.errors import RequestError
from mcompose.evaluate.media import FRAMES, MediaError, read_media


def write_tone(path, rate, hertz=440.0, seconds=0.5):
    samples = np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate) * 16000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def write_film(av, path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        for value in frames:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_evaluate_films_need_pyav_and_say_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "a.mp3").write_bytes(b"x")
    write_tone(tmp_path / "a.wav", 8000)
    for name, modality, message in (
        ("a.mp4", "video", r"a.mp4 is a film.*pip install av"),
        ("a.mp3", "audio", r"a.mp3 is no WAV file.*pip install av"),
        ("a.wav", "audio", r"a.wav has 8000 Hz, and this checkpoint hears 16000 Hz.*pip install av"),
    ):
        with pytest.raises(RequestError, match=message) as refused:
            read_media(tmp_path / name, modality, sampling_rate=16000)
        assert not isinstance(refused.value, MediaError), "a file that is whole must not be skipped as broken"
    with pytest.raises(MediaError, match=r"gone.mp4 cannot be read: no such file"):
        read_media(tmp_path / "gone.mp4", "video")


def test_evaluate_films_give_frames_evenly_spread(tmp_path) -> None:
    av = pytest.importorskip("av")
    write_film(av, tmp_path / "a.mp4", np.linspace(20, 220, 29))
    clip = read_media(tmp_path / "a.mp4", "video")
    assert clip.shape == (FRAMES, 32, 32, 3)
    np.testing.assert_allclose(clip.mean(axis=(1, 2, 3)), np.linspace(20, 220, FRAMES), atol=6)
    write_film(av, tmp_path / "short.mp4", [50, 200])
    assert len(read_media(tmp_path / "short.mp4", "video")) == 2
    (tmp_path / "broken.mp4").write_bytes(b"no film at all")
    with pytest.raises(MediaError, match=r"broken.mp4 cannot be read"):
        read_media(tmp_path / "broken.mp4", "video")


def test_evaluate_sounds_of_another_rate_are_resampled(tmp_path) -> None:
    pytest.importorskip("av")
    write_tone(tmp_path / "slow.wav", 8000)
    write_tone(tmp_path / "right.wav", 16000)
    heard = read_media(tmp_path / "slow.wav", "audio", sampling_rate=16000)
    assert abs(len(heard) - 8000) <= 32
    peak = np.argmax(np.abs(np.fft.rfft(heard[:8000], 8000))) * 2
    assert abs(peak - 440) <= 4
    wanted = read_media(tmp_path / "right.wav", "audio", sampling_rate=16000)
    np.testing.assert_allclose(np.std(heard), np.std(wanted), rtol=0.05)
