"""Downloads mergekit's tests: its source distribution, by pip, checked by hash and unpacked into the build folder.

mergekit is LGPL-3.0: its tests are used where they are unpacked, and are not a part of this project.
"""

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

__all__ = ["FILES", "VERSION", "check_hash", "fetch", "unpack"]

VERSION = "0.1.5"
SHA256 = "caa51dbbfa493bcd62218d17f2bc7bb1c7a2a2e4baf4e2f34a29d73c66c594aa"
FILES = (
    "test_sparsify.py",
    "test_merge_method_regressions.py",
    "test_batched_merges.py",
    "test_merge_dtypes.py",
    "test_merge_method_interface.py",
)
"""Files with numerics tests; the others test tokenizers, graphs, readers and writers."""


def fetch(folder: Path) -> Path:
    """Downloads and unpacks the test files, once.

    Args:
        folder: Folder for the archive and the files.

    Returns:
        The folder of the test files.

    Raises:
        SystemExit: pip cannot download the archive, or it is not the pinned one.
    """
    archive = folder / f"mergekit-{VERSION}.tar.gz"
    if not archive.is_file():
        download(folder)
    check_hash(archive)
    return unpack(archive, folder / "unpacked")


def download(folder: Path) -> None:
    """Downloads the archive by pip, which compares the hash before it reads the archive's metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    pinned = folder / "requirements.txt"
    pinned.write_text(f"mergekit=={VERSION} --hash=sha256:{SHA256}\n")
    # The installed setuptools reads the metadata; with isolation, pip would build another one from source.
    flags = ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *flags, "-r", str(pinned), "-d", str(folder)]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"pip could not download the source distribution of mergekit {VERSION} (see above).")


def check_hash(archive: Path) -> None:
    """Compares an archive with the pinned hash.

    Raises:
        SystemExit: They differ.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{archive} has sha256 {found}, not {SHA256}. Delete it and run the command again.")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpacks the test files of `FILES`, and nothing else: the installed mergekit is the one that is tested.

    Args:
        archive: The source distribution.
        folder: Folder to unpack into.

    Returns:
        The folder of the test files.
    """
    root = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        for name in (*(f"tests/{file}" for file in FILES), "pyproject.toml"):
            tar.extract(f"{root}/{name}", folder, filter="data")
    return folder / root / "tests"
