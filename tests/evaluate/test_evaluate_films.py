"""Films and other sounds: decoded by PyAV where it is installed, and refused with a sentence where it is not."""

from __future__ import annotations

import struct
import sys
import wave

import numpy as np
import pytest

from mcompose.errors import RequestError
from mcompose.media import FRAMES, MediaError, read_media


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
        ("a.mp4", "video", r"a.mp4 is a video.*pip install av"),
        ("a.mp3", "audio", r"a.mp3 is not a WAV file.*pip install av"),
        ("a.wav", "audio", r"a.wav has 8000 Hz, but this checkpoint needs 16000 Hz.*pip install av"),
    ):
        with pytest.raises(RequestError, match=message) as refused:
            read_media(tmp_path / name, modality, sampling_rate=16000)
        assert not isinstance(refused.value, MediaError), "a file that is whole must not be skipped as broken"
    with pytest.raises(MediaError, match=r"gone.mp4 is missing"):
        read_media(tmp_path / "gone.mp4", "video")


def float_wav(path, samples):
    data = np.asarray(samples, "<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, 16000, 64000, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def test_evaluate_sounds_of_fractions_are_whole_files(tmp_path, monkeypatch) -> None:
    float_wav(tmp_path / "a.wav", [0.25, -0.5] * 50)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "av", None)
        with pytest.raises(RequestError, match=r"a.wav is not a WAV file of integers.*pip install av") as refused:
            read_media(tmp_path / "a.wav", "audio")
        assert not isinstance(refused.value, MediaError)
    pytest.importorskip("av")
    np.testing.assert_array_equal(read_media(tmp_path / "a.wav", "audio"), np.float32([0.25, -0.5] * 50))


def test_evaluate_empty_media_are_broken(tmp_path) -> None:
    write_tone(tmp_path / "a.wav", 8000, seconds=0)
    np.save(tmp_path / "clip.npy", np.zeros((0, 4, 4, 3), np.uint8))
    np.save(tmp_path / "cloud.npy", np.zeros((0, 3)))
    np.save(tmp_path / "line.npy", np.zeros(3))
    for name, modality, reason in (
        ("a.wav", "audio", "it does not contain sound"),
        ("clip.npy", "video", "a video must have the shape"),
        ("cloud.npy", "points", "a point cloud must have the shape"),
        ("line.npy", "points", "a point cloud must have the shape"),
    ):
        for source, named in ((tmp_path / name, name), ((tmp_path / name).read_bytes(), "inside the record")):
            with pytest.raises(MediaError, match=f"The {modality} .*{named} cannot be read: {reason}"):
                read_media(source, modality)


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
    inside = read_media((tmp_path / "a.mp4").read_bytes(), "video")
    np.testing.assert_array_equal(inside, clip)
    write_tone(tmp_path / "a.wav", 8000)
    (tmp_path / "sound.mp4").write_bytes((tmp_path / "a.wav").read_bytes())
    with pytest.raises(MediaError, match=r"sound.mp4 cannot be read: it does not contain images"):
        read_media(tmp_path / "sound.mp4", "video")


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
