"""Outputs that several runs write together: every run some of the weight files, one run the rest.

A part is written into ``<dir>.part-K-of-N.partial`` beside the output, with a journal, and stays there with a mark that
it is complete. ``gather`` moves the files of all parts into the partial folder of the output and takes over their
journals: to the run that finishes the output, it is as if an interrupted run had written every tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcompose.checkpoint.folders import JOURNAL_NAME, FolderLock, check_replaceable, discard, partial_folder
from mcompose.checkpoint.journal import Journal, JournalRow
from mcompose.checkpoint.layout import Layout, ShardLayout
from mcompose.checkpoint.staged import StagedOutput
from mcompose.errors import OutputError, RequestError
from mcompose.whole_files import draft_of

__all__ = ["Part", "PartOutput", "discard_parts", "find_parts", "gather"]

MARK = "part.json"
"""File of a complete part, with the fingerprint of the whole run."""


@dataclass(frozen=True)
class Part:
    """One of several runs that write an output together.

    Args:
        number: From 1.
        count: Number of parts.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Reads ``k/n``.

        Raises:
            RequestError: It is something else, or k is not one of 1 to n.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise RequestError(f"'{text}' is not a part.", hint="Parts are 1/4, 2/4, 3/4 and 4/4.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def folder(self, output: Path) -> Path:
        """Returns the name of the part's output, beside the whole."""
        final = check_replaceable(output)
        return final.parent / f"{final.name}.part-{self.number}-of-{self.count}"

    def shards(self, layout: Layout) -> tuple[ShardLayout, ...]:
        """Returns the files that the part writes.

        Raises:
            RequestError: There are more parts than files.
        """
        files = len(layout.shards)
        if self.count > files:
            raise RequestError(
                f"The output has {files} weight file{'s' if files > 1 else ''}, which {self.count} parts cannot share.",
                hint="Ask for fewer parts, or set a smaller 'output.max_shard_size'.",
            )
        first, last = (files * number // self.count for number in (self.number - 1, self.number))
        return layout.shards[first:last]


class PartOutput:
    """Target of a run that writes one part: what other parts write counts as written.

    Args:
        staged: The part's own folder.
        shards: The part's files.
    """

    def __init__(self, staged: StagedOutput, shards: tuple[ShardLayout, ...]) -> None:
        self.staged, self.shards = staged, shards

    @property
    def partial(self) -> Path:
        """Folder of the part."""
        return self.staged.partial

    def allocate(self, layout: Layout) -> Mapping[str, JournalRow]:
        """Allocates the part's files; tensors of other parts are returned as finished."""
        own = Layout(self.shards, None)
        others = {name: JournalRow(name, "") for name in layout.places if name not in own.places}
        return {**others, **self.staged.allocate(own)}

    def pwrite_all(self, shard: str, offset: int, data: memoryview) -> None:
        """Writes bytes to their place."""
        self.staged.pwrite_all(shard, offset, data)

    def record(self, name: str, *, digest: str, row: Mapping[str, Any] | None = None) -> None:
        """Records a finished tensor."""
        self.staged.record(name, digest=digest, row=row)

    def complete(self, fingerprint: str) -> None:
        """Marks the part as complete; call it when every tensor is recorded.

        Args:
            fingerprint: Fingerprint of the whole run.
        """
        self.staged.write_file(MARK, json.dumps({"fingerprint": fingerprint}) + "\n")


def find_parts(output: Path) -> list[Part]:
    """Returns the parts that lie beside an output, by number.

    Raises:
        OutputError: There are none, one is missing, or they are of two splits.
    """
    final = check_replaceable(output)
    pattern = re.compile(re.escape(final.name) + r"\.part-(\d+)-of-(\d+)\.partial")
    names = sorted(path.name for path in final.parent.glob("*.partial"))
    parts = [Part(int(found[1]), int(found[2])) for name in names if (found := pattern.fullmatch(name))]
    if not parts:
        raise OutputError(f"'{output}' has no parts beside it.", hint="Write them with `merge RECIPE --part k/n`.")
    counts = sorted({part.count for part in parts})
    if len(counts) > 1:
        raise OutputError(
            f"Beside '{output}' lie parts of several splits ({' and '.join(f'n = {n}' for n in counts)}), so files "
            "would be there twice.",
            hint=f"Delete the folders '{final.name}.part-*' of all but one split.",
        )
    missing = [
        str(Part(number, counts[0])) for number in range(1, counts[0] + 1) if Part(number, counts[0]) not in parts
    ]
    if missing:
        raise OutputError(
            f"Part {' and '.join(missing)} of '{output}' is missing.",
            hint=f"Run `merge RECIPE --part {missing[0]}`, then `--finish` again.",
        )
    return sorted(parts, key=lambda part: part.number)


def gather(staged: StagedOutput, output: Path, layout: Layout, *, fingerprint: str) -> list[Part]:
    """Moves the files of all parts into the partial folder of an output, with their journals.

    Args:
        staged: The output, opened and not allocated yet. Allocate it with ``recheck``, which reads every tensor.
        output: Folder of the output.
        layout: Layout of the output.
        fingerprint: Fingerprint of the run, which must be that of every part.

    Returns:
        The parts; call ``discard_parts`` when the output is finished.

    Raises:
        OutputError: A part is missing, not complete, being written, or of another run.
    """
    parts = find_parts(output)
    rows: dict[str, JournalRow] = {}
    moves: list[tuple[Path, Path]] = []
    for part in parts:
        folder = partial_folder(part.folder(output))
        lock = FolderLock.take(folder)
        try:
            rows |= _rows(folder, part, layout, fingerprint)
        finally:
            lock.release()
        for shard in part.shards(layout):
            source, target = (draft_of(place / shard.filename) for place in (folder, staged.partial))
            if not source.exists() and not target.exists():
                raise OutputError(f"Part {part} of '{output}' has lost '{shard.filename}'.", hint=_again(part))
            moves += [(source, target)] if source.exists() else []
    for source, target in moves:
        source.replace(target)
    staged.adopt(rows)
    return parts


def _rows(folder: Path, part: Part, layout: Layout, fingerprint: str) -> dict[str, JournalRow]:
    journal = Journal.resume(folder / JOURNAL_NAME, fingerprint=f"{fingerprint} part {part}")
    if journal is None:
        raise OutputError(
            f"Part {part} in '{folder}' is of another recipe, other sources or another version.", hint=_again(part)
        )
    journal.close()
    wanted = [name for shard in part.shards(layout) for name in shard.offsets]
    if not (folder / MARK).exists() or any(name not in journal.rows for name in wanted):
        raise OutputError(f"Part {part} in '{folder}' is not complete.", hint=_again(part))
    return {name: journal.rows[name] for name in wanted}


def _again(part: Part) -> str:
    return f"Run `merge RECIPE --part {part}` again, then `--finish`."


def discard_parts(parts: list[Part], output: Path) -> None:
    """Deletes what is left of the parts of a finished output."""
    for part in parts:
        discard(partial_folder(part.folder(output)))
