"""Pictures, films, sounds and clouds as people have them, and as hostile files have them."""

import struct

import numpy as np
import pytest
from PIL import Image

from mcompose.media import MediaError, picture_size, read_media


def test_a_photograph_is_seen_upright_and_measured_so(tmp_path):
    upright = Image.fromarray(np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[:, None], 32, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    seen = read_media(tmp_path / "phone.png", "image")
    np.testing.assert_array_equal(np.asarray(seen)[..., 0], np.asarray(upright))
    assert picture_size(tmp_path / "phone.png") == (32, 64)


def test_deep_greys_are_scaled_and_odd_ones_refused(tmp_path):
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(np.asarray(read_media(tmp_path / "deep.png", "image"))[..., 0], ramp >> 8)
    Image.fromarray(np.float32([[0.0, 4000.0]])).save(tmp_path / "odd.tiff")
    with pytest.raises(MediaError, match="greys from 0 to 4000 have no known scale"):
        read_media(tmp_path / "odd.tiff", "image")


def test_what_unfolds_beyond_all_bounds_is_refused_from_its_header(tmp_path):
    frame = b"\x21\xf9\x04\0\1\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00"
    head = b"GIF89a" + struct.pack("<HHBBB", 4000, 4000, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    (tmp_path / "bomb.gif").write_bytes(head + frame * 400 + b";")
    with pytest.raises(MediaError, match="400 frames of 4000 x 4000 are more than is read"):
        read_media(tmp_path / "bomb.gif", "video")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }".ljust(117) + b"\n"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(MediaError, match="more than is read"):
        read_media(tmp_path / "huge.npy", "points")


def test_a_picture_is_told_by_its_content_from_a_fixed_list(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(MediaError, match="not an image that Pillow can read"):
        read_media(tmp_path / "cat.png", "image")


def test_clouds_lose_their_colours_and_are_finite(tmp_path):
    cloud = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    np.save(tmp_path / "cloud.npy", cloud)
    np.testing.assert_array_equal(read_media(tmp_path / "cloud.npy", "points"), cloud[:, :3])
    np.savez(tmp_path / "cloud.npz", cloud)
    with pytest.raises(MediaError, match=r"an archive of arrays \(.npz\)"):
        read_media(tmp_path / "cloud.npz", "points")
    np.save(tmp_path / "nan.npy", np.full((4, 3), np.nan))
    with pytest.raises(MediaError, match="not finite"):
        read_media(tmp_path / "nan.npy", "points")


def test_frames_between_zero_and_one_are_scaled(tmp_path):
    frames = np.random.default_rng(0).random((2, 4, 4, 3))
    np.save(tmp_path / "film.npy", frames)
    np.testing.assert_array_equal(read_media(tmp_path / "film.npy", "video"), (frames * 255).round())
    np.save(tmp_path / "odd.npy", frames - 0.5)
    with pytest.raises(MediaError, match="neither 0 to 1 nor 0 to 255"):
        read_media(tmp_path / "odd.npy", "video")
