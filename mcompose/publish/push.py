"""Publishing an output: check it, write its card, upload it, read it back and compare.

Nothing is believed: after the upload the Hub is asked what it holds at the new commit, and every file's size and hash
must be that of the file here (sha256 for large files, git's own hash for small ones).

Security: tokens come from ``hf auth login``, ``HF_TOKEN`` or the caller, go to the Hub alone, and are neither printed
nor written; foreign messages are cleaned. A file that holds a token stops the push, and ``private=True`` never uploads
to a repository that is public.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from mcompose.card_mark import is_edited_card
from mcompose.checkpoint import LOG_IN, PICKLES, digest_file, hub_errors
from mcompose.errors import CheckpointError, HubError, InterruptedRunError, OutputError, RequestError
from mcompose.ledger import Ledger
from mcompose.on_disk import CARD, LEDGER, LOCK, RECIPE, RESOLVED
from mcompose.publish.card import model_card, write_card
from mcompose.publish.traces import find_machine_paths, holds_secret

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import CommitInfo, RepoFile

__all__ = ["PushOptions", "PushReport", "PushedFile", "push"]

_SKIPPED = ("*.partial", "*.tmp", "*.lock", "*.log", "journal.jsonl", "__pycache__", ".*")
_STALE = ["model*.safetensors", "model*.safetensors.index.json"]
"""Weights of an earlier push that this one does not have would be loaded instead of ours, or beside them."""


class PushOptions(TypedDict, total=False):
    """Keyword arguments of ``push``.

    Keys:
        private: Create the repository as private; refuse one that is public.
        create_pr: Open a pull request instead of writing to the main branch.
        dry_run: Say what would be uploaded; no request is made and no file is written.
        commit_message: Message of the commit.
        token: Hub token; by default the one of the environment.
        progress: Called with each step, as a short sentence.
    """

    private: bool
    create_pr: bool
    dry_run: bool
    commit_message: str | None
    token: str | None
    progress: Callable[[str], None] | None


@dataclass(frozen=True)
class PushedFile:
    """One file: its path in the repository, its size in bytes and its sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class PushReport:
    """What was uploaded, or would be.

    Args:
        repo_id: The repository.
        url: Page of the repository, or of the pull request; empty for a dry run.
        commit: The new commit; empty for a dry run.
        files: Every file, sorted by path.
        private: Whether it was asked for as private.
        dry_run: True when nothing was uploaded.
        card: ``written``, or ``kept`` when a person has edited it.
        skipped: Files of the folder that are not published.
        notes: Sentences for the user.
    """

    repo_id: str
    url: str
    commit: str
    files: tuple[PushedFile, ...]
    private: bool = False
    dry_run: bool = False
    card: str = "written"
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Returns the size of all files together."""
        return sum(file.size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return asdict(self) | {"bytes": self.bytes}

    def to_text(self) -> str:
        """Returns the report as text."""
        kind = "private " if self.private else ""
        count = f"{len(self.files)} files ({self.bytes:,} bytes)"
        head = (
            f"Would upload {count} to the {kind}repository '{self.repo_id}':"
            if self.dry_run
            else f"{self.url}\ncommit {self.commit}: {count}, read back and equal."
        )
        listed = [f"  {file.path}  {file.size:,}" for file in self.files] if self.dry_run else []
        card = ["README.md was edited by hand and is kept as it is."] if self.card == "kept" else []
        skipped = [f"not published: {', '.join(self.skipped)}"] if self.skipped else []
        return "\n".join([head, *listed, *card, *skipped, *self.notes])


def push(folder: Path, repo_id: str, **options: Unpack[PushOptions]) -> PushReport:
    """Publishes an output of mcompose on the Hugging Face Hub.

    Args:
        folder: A finished output.
        repo_id: ``org/name``.
        options: See ``PushOptions``.

    Returns:
        What was uploaded, after it was read back and compared.

    Raises:
        RequestError: The repository's name is not valid.
        CheckpointError: The folder is not a finished output, or a file is not what its lock says.
        OutputError: A file holds a token, or the repository is public although private was asked for.
        HubError: No token, no permission, no connection, or the Hub holds something else than was sent.
        InterruptedRunError: Ctrl-C; the next push resumes where this one stopped.
    """
    dry_run = options.get("dry_run", False)
    say = options.get("progress") or (lambda _: None)
    _check_name(repo_id)
    ledger = _finished_ledger(folder)
    token = options.get("token") or _token()
    if not token and not dry_run:
        raise HubError("No Hub token was found.", hint=LOG_IN)
    kept = is_edited_card(folder / CARD)
    if not dry_run:
        write_card(ledger, folder, repo_id)
    say("hashing files")
    names, skipped = _published_names(folder)
    _refuse_secrets(folder, names, token)
    files = {name: PushedFile(name, **vars(digest_file(folder / name))) for name in names}
    if dry_run and not kept:
        files[CARD] = _planned_card(model_card(ledger, folder, repo_id))
    _check_lock(folder, files)
    report = PushReport(
        repo_id,
        url="",
        commit="",
        files=tuple(files[name] for name in sorted(files)),
        private=options.get("private", False),
        dry_run=dry_run,
        card="kept" if kept else "written",
        skipped=skipped,
        notes=_machine_notes(folder),
    )
    if dry_run:
        return report
    message = options.get("commit_message") or f"Upload {ledger.name}, merged by {ledger.method}"
    return _publish(folder, report, message=message, token=token, options=options)


def _publish(folder: Path, report: PushReport, *, message: str, token: str | None, options: PushOptions) -> PushReport:
    """Creates the repository, uploads, reads back."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - a network library, on first use

    say = options.get("progress") or (lambda _: None)
    api = HfApi(token=token)
    try:
        with hub_errors(report.repo_id, token=token, explain=_explain):
            _create(api, report)
            say(f"uploading {report.bytes:,} bytes to {report.repo_id}")
            info = _upload(api, folder, report, message=message, create_pr=options.get("create_pr", False))
            say("reading back")
            _compare(folder, report.files, _remote_files(api, report.repo_id, info.oid))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"The upload to '{report.repo_id}' was interrupted.",
            hint="Push again: files that have arrived are not sent twice.",
        ) from None
    url = info.pr_url or f"{api.endpoint}/{report.repo_id}"
    return replace(report, url=url, commit=info.oid)


# before


def _check_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415 - see _publish
    from huggingface_hub.utils import validate_repo_id  # noqa: PLC0415 - see _publish

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        valid = repo_id.count("/") == 1
    if not valid:
        raise RequestError(
            f"'{repo_id}' is not a valid repository name.",
            hint="Write it as 'org/name', with letters, digits, '-', '_' and '.'; `hf auth whoami` shows your own.",
        )


def _token() -> str | None:
    from huggingface_hub import get_token  # noqa: PLC0415 - see _publish

    return get_token()


def _finished_ledger(folder: Path) -> Ledger:
    hint = "Name a finished output of 'mcompose merge'."
    if not folder.is_dir():
        raise CheckpointError(f"'{folder}' is not a folder.", hint=hint)
    if folder.resolve().name.endswith(".partial"):
        raise CheckpointError(f"'{folder}' is an unfinished output.", hint="Run the merge again: it resumes.")
    ledger = Ledger.read(folder)
    for name in ("config.json", LOCK, RECIPE):
        if not (folder / name).is_file():
            raise CheckpointError(f"'{folder}' holds no {name}.", hint=hint)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"'{folder}' holds no weights.", hint=hint)
    return ledger


def _published_names(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Returns relative paths of the files to upload, and of those to leave; both sorted."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    skipped = {name for name in names if any(_is_skipped(part) for part in name.split("/"))}
    return [name for name in names if name not in skipped], tuple(n for n in names if n in skipped)


def _is_skipped(part: str) -> bool:
    return any(fnmatch(part, pattern) for pattern in (*_SKIPPED, *PICKLES))


def _refuse_secrets(folder: Path, names: Sequence[str], token: str | None) -> None:
    secrets = tuple(secret for secret in {token: None, _token(): None} if secret)
    for name in names:
        if holds_secret(folder / name, secrets=secrets):
            raise OutputError(
                f"'{name}' holds an access token; nothing was uploaded.",
                hint="Take the token out of the file, revoke it on the Hub, and push again.",
            )


def _check_lock(folder: Path, files: Mapping[str, PushedFile]) -> None:
    """Refuses an output whose files are not those of its lock; the card may have been written anew."""
    path = folder / LOCK
    try:
        locked = json.loads(path.read_text(encoding="utf-8"))["files"]
        table = cast("dict[str, dict[str, Any]]", locked).items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is not a lock file.") from error
    for name, expected in table:
        if name == CARD:
            continue
        file = files.get(name)
        if file is None:
            raise CheckpointError(f"'{name}' is missing, but the lock lists it.", hint=_VERIFY)
        if any(getattr(file, key) != expected[key] for key in ("size", "sha256") if key in expected):
            raise CheckpointError(f"'{name}' was changed after the output was written.", hint=_VERIFY)


_VERIFY = "`mcompose verify` shows what differs; merge again, or restore the file."


def _planned_card(text: str) -> PushedFile:
    data = text.encode()
    return PushedFile(CARD, len(data), hashlib.sha256(data).hexdigest())


def _machine_notes(folder: Path) -> tuple[str, ...]:
    """Says which records name folders of this machine; they are published as they are."""
    notes: list[str] = []
    for name in (RECIPE, RESOLVED, LOCK, LEDGER):
        path = folder / name
        found = find_machine_paths(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []
        if found:
            notes.append(f"{name} names a path of this machine, which readers will see: {found[0]}")
    return tuple(notes)


# on the Hub


def _create(api: HfApi, report: PushReport) -> None:
    api.create_repo(report.repo_id, private=True if report.private else None, exist_ok=True)
    if report.private and not api.model_info(report.repo_id).private:
        raise OutputError(
            f"'{report.repo_id}' exists and is public; nothing was uploaded.",
            hint="Make it private on the Hub, name another repository, or leave --private out.",
        )


def _upload(api: HfApi, folder: Path, report: PushReport, *, message: str, create_pr: bool) -> CommitInfo:
    return api.upload_folder(
        repo_id=report.repo_id,
        folder_path=folder,
        allow_patterns=[escape(file.path) for file in report.files],
        delete_patterns=_STALE,
        commit_message=message,
        create_pr=create_pr,
    )


def _remote_files(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415 - see _publish

    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _compare(folder: Path, files: Sequence[PushedFile], remote: Mapping[str, RepoFile]) -> None:
    """Refuses an upload that the Hub does not hold with the same sizes and hashes."""
    for file in files:
        there = remote.get(file.path)
        if there is None:
            raise HubError(f"The Hub does not hold '{file.path}' after the upload.", hint=_AGAIN)
        if there.lfs is not None:
            same = (there.lfs.size, there.lfs.sha256) == (file.size, file.sha256)
        else:
            same = (there.size, there.blob_id) == (file.size, _git_hash(folder / file.path))
        if not same:
            raise HubError(f"'{file.path}' on the Hub differs from the file that was sent.", hint=_AGAIN)


_AGAIN = "Push again; if that does not help, delete the file on the Hub first."


def _git_hash(path: Path) -> str:
    """Returns the name that git gives to a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _explain(kind: str) -> str:
    if kind == "permission":
        return "Use a token with write permission for that namespace, or offer a pull request: --create-pr."
    return f"Does the namespace exist, and may you write there? {LOG_IN}"
