"""Records of the family ``pictures`` as conversations: all questions about one picture in one sample.

A picture costs some eighty tokens and a question ten, so that a sample with several questions teaches several times as
much for nearly the same work. The general model learned to answer in the same form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mcompose.lab import LabFamily

__all__ = ["together", "write_conversations"]

_PLACEHOLDER: Final = "<image>"


def write_conversations(family: LabFamily, folder: Path) -> dict[tuple[str, int], Path]:
    """Writes the records of both stages.

    Args:
        family: The family ``pictures``.
        folder: Where to; files that are there already are left alone.

    Returns:
        Domain and stage -> file; media are found from there.
    """
    made = {}
    for domain in family.figures["domains"]:
        for stage in (1, 2):
            source = family.folder / "data" / "train" / f"{domain}-{stage}.jsonl"
            made[domain, stage] = path = folder / source.name
            if path.is_file():
                continue
            start = os.path.relpath(source.parent.resolve(), folder.resolve())
            rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
            moved = [{**row, "image": f"{Path(start, row['image']).as_posix()}"} for row in together(rows)]
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in moved), encoding="utf-8")
            partial.rename(path)
    return made


def together(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Brings the records of each picture into one, in the order of their first.

    Args:
        rows: Conversations of one turn, each with ``image``; the first words are the picture's placeholder.

    Returns:
        One conversation a picture; the placeholder stands at its beginning alone.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        asked, answered = row["conversations"]
        known = found.setdefault(row["image"], {**row, "conversations": []})
        if known["conversations"]:
            asked = {**asked, "value": asked["value"].removeprefix(_PLACEHOLDER).strip()}
        known["conversations"] += [asked, answered]
    return list(found.values())
