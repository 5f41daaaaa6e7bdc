"""References to checkpoints: ``hub:org/name@rev`` or ``local:path``.

A bare name could be a folder or a repository, so it is refused with both spellings as a hint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mcompose.errors import RequestError

__all__ = ["ModelRef"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class ModelRef:
    """A reference to a checkpoint.

    Args:
        kind: ``"hub"`` or ``"local"``.
        location: Repository id, or a path as the user wrote it.
        revision: Branch, tag or commit of a Hub repository; None for the default branch and for local paths.
    """

    kind: str
    location: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Reads a reference.

        Args:
            text: ``hub:org/name``, ``hub:org/name@rev`` or ``local:path``.

        Returns:
            The reference.

        Raises:
            RequestError: The text does not have a known scheme, or the repository id is not valid.
        """
        scheme, separator, rest = text.partition(":")
        if not separator or scheme not in {"hub", "local"}:
            raise RequestError(
                f"'{text}' must begin with 'hub:' or 'local:'.",
                hint=f"Write 'hub:{text}' for a Hugging Face repository or 'local:{text}' for a folder.",
            )
        if scheme == "local":
            if not rest:
                raise RequestError("'local:' does not name a folder.", hint="Write 'local:path/to/checkpoint'.")
            return cls("local", rest)
        repo_id, separator, revision = rest.partition("@")
        if not _REPO_ID.fullmatch(repo_id) or (separator and not revision):
            raise RequestError(
                f"'{text}' is not a Hub reference.", hint="Write 'hub:org/name' or 'hub:org/name@revision'."
            )
        return cls("hub", repo_id, revision or None)

    def path(self, relative_to: Path) -> Path:
        """Returns the folder of a local reference.

        Args:
            relative_to: Folder that relative paths start from: the recipe's folder.

        Returns:
            The folder; it may not exist.
        """
        return relative_to / Path(self.location).expanduser()

    def __str__(self) -> str:
        return f"{self.kind}:{self.location}" + (f"@{self.revision}" if self.revision else "")
