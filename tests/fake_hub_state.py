"""What the fake Hub holds: repositories as commits of blobs, the faults that it was told to show, its log."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Blob:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else git_oid(self.data)

    def entry(self) -> dict[str, Any]:
        row: dict[str, Any] = {"size": len(self.data), "oid": git_oid(self.data)}
        if self.lfs:
            row["lfs"] = {
                "oid": self.sha256,
                "sha256": self.sha256,
                "size": len(self.data),
                "pointerSize": 134,
            }
        return row


@dataclass
class Repo:
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], *, ref: str = "main", message: str = "") -> str:
        seed = f"{self.id}{len(self.commits)}" + "".join(f"{p}{files[p].etag}" for p in sorted(files))
        oid = hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = files
        self.refs[ref] = oid
        self.messages[oid] = message
        return oid

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[self.refs["main"]]


@dataclass
class Faults:
    """What goes wrong; ``corrupt`` names files that are damaged after the upload was accepted."""

    corrupt: tuple[str, ...] = ()
    lose: tuple[str, ...] = ()
    reset_uploads: int = 0
    reset_downloads: int = 0
    ignore_range: bool = False
    echo_token: bool = False
    fail_commits: int = 0


@dataclass
class Request:
    method: str
    path: str
    authorization: str
    range: str
    sent: int = 0
