"""Checkpoints on the Hugging Face Hub: one commit, only the files needed, and headers without weights.

A revision is resolved to a commit first; everything is then read at that commit, through the Hub's cache, so that
``HF_HOME``, ``HF_HUB_OFFLINE`` and partly fetched files work as in ``huggingface_hub``. Only safetensors weights are
fetched; pickles, other formats and the repository's code are listed and never fetched. Without weights, headers are
read by range requests: a few kilobytes for each file.

Security: the token comes from ``hf auth login`` or ``HF_TOKEN``. ``huggingface_hub`` sends it to the Hub only; it is
never printed or written. ``redact`` removes tokens from every message of the library that mcompose quotes.

Only calls that exist in huggingface_hub 1.31 and 2.x are used; the library is imported on first use.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcompose.checkpoint.headers import MAX_HEADER_BYTES, read_json_object
from mcompose.checkpoint.sidecar import SIDECAR_PATTERNS, is_sidecar
from mcompose.checkpoint.snapshot import HubSnapshot
from mcompose.checkpoint.stored import stored_graphs
from mcompose.checkpoint.weight_files import find_weight_files
from mcompose.errors import CheckpointError, HubError, McomposeError, StorageError, first_line, nearest_name
from mcompose.refs import ModelRef

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["FIRST_BYTES", "LOG_IN", "fetch", "hub_errors", "redact"]

FIRST_BYTES = 100_000
"""Length of the first range request, in bytes; most headers fit, so that one request per file is enough."""

LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."

_SMALL = ("config.json", "README.md", "adapter_config.json", "*.safetensors.index.json")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"hf_\w{8,}|(?<=Bearer )\S+")
_Explain = Callable[[str], str]
_SECONDS = 30.0
_ATTEMPTS = 3
_THREADS = 8


def fetch(
    ref: ModelRef, *, weights: bool, files: tuple[str, ...] | None = None, token: str | None = None
) -> HubSnapshot:
    """Fetches a checkpoint of the Hub at one commit.

    Args:
        ref: A Hub reference.
        weights: Whether to fetch the weight files. If False, their headers are read by range requests, or from the
            cache when the files are there already.
        files: Names of files to fetch instead of weight files, if they exist; for folders without weight files.
        token: Hub token; default: the token of the environment.

    Returns:
        The folder in the Hub's cache, the commit, and the list of files in the repository.

    Raises:
        CheckpointError: The repository or the revision does not exist, or does not have safetensors weights.
        HubError: The Hub refused, or could not be reached.
        StorageError: The disk is full.
    """
    from huggingface_hub import HfApi, is_offline_mode  # noqa: PLC0415 - a network library, on first use

    api = HfApi(token=token)
    with hub_errors(ref.location, revision=ref.revision, token=token, explain=partial(_explain, api, ref)):
        listing = None if is_offline_mode() else _list(api, ref)
        if listing is None:
            return _from_cache(ref, weights=weights, files=files)
        folder = _download(ref, listing.commit, filter(_is_small, listing.files), token=token)
        if ref.revision != listing.commit:
            _cache_branch(ref, token=token)
        names = _weight_names(folder, listing.files, ref) if files is None else files
        headers = None
        if weights:
            _download(ref, listing.commit, (*names, *_graphs(folder)), token=token)
        else:
            headers = _headers(api, ref, listing, folder=folder, names=names)
        return HubSnapshot(folder, listing.commit, headers, listing.files, listing.digests)


@dataclass(frozen=True)
class _Listing:
    commit: str
    files: Mapping[str, int]
    digests: Mapping[str, str]


def _list(api: HfApi, ref: ModelRef) -> _Listing | None:
    """Lists the repository at the commit of the revision.

    Returns None when the Hub cannot be reached and the reference is a commit: the cache then has the same content.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # noqa: PLC0415 - see fetch

    try:
        info = api.model_info(ref.location, revision=ref.revision, files_metadata=True, timeout=_SECONDS)
    except HTTPError as error:
        if isinstance(error, HfHubHTTPError) or not _COMMIT.fullmatch(ref.revision or ""):
            raise
        return None
    siblings = info.siblings or []
    if info.sha is None:
        raise HubError(f"The Hub did not return a commit for '{ref}'.", hint="Try again later.")
    files = {file.rfilename: file.size or 0 for file in siblings}
    return _Listing(info.sha, files, {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs})


def _is_small(name: str) -> bool:
    return is_sidecar(name) or ("/" not in name and any(Path(name).match(pattern) for pattern in _SMALL))


def _download(ref: ModelRef, commit: str, names: Iterable[str], *, token: str | None) -> Path:
    """Fetches files into the Hub's cache; files that are there already are not fetched again."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - see fetch

    patterns = [escape(name) for name in names]
    return Path(snapshot_download(ref.location, revision=commit, allow_patterns=patterns, token=token))


def _cache_branch(ref: ModelRef, *, token: str | None) -> None:
    """Makes the cache record the commit of the branch, so that it can be found offline."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - see fetch

    snapshot_download(ref.location, revision=ref.revision, allow_patterns=["config.json"], token=token)


def _weight_names(folder: Path, files: Iterable[str], ref: ModelRef) -> tuple[str, ...]:
    """Returns the names of the weight files of a checkpoint, of an adapter, or of both."""
    present = list(files)
    adapter = (_ADAPTER[1],) if all(name in present for name in _ADAPTER) else ()
    try:
        return find_weight_files(folder, present, name=str(ref)).names + adapter
    except CheckpointError:
        if not adapter:
            raise
        return adapter


def _graphs(folder: Path) -> Iterable[str]:
    """Returns the names of the experts' graphs in a composed checkpoint."""
    config = folder / "config.json"
    return stored_graphs(read_json_object(config)) if config.is_file() else ()


# without weights


def _headers(api: HfApi, ref: ModelRef, listing: _Listing, *, folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Returns the header bytes of each weight file, from the cache where the file is there."""

    def read(name: str) -> bytes:
        size = listing.files[name]
        if (folder / name).is_file():
            return _local_header(folder / name)
        return _remote_header(api, ref, commit=listing.commit, name=name, size=size)

    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def _local_header(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(8)
        return start + file.read(min(int.from_bytes(start, "little"), MAX_HEADER_BYTES))


def _remote_header(api: HfApi, ref: ModelRef, *, commit: str, name: str, size: int) -> bytes:
    from huggingface_hub import hf_hub_url  # noqa: PLC0415 - see fetch

    url = hf_hub_url(ref.location, name, revision=commit, endpoint=api.endpoint)
    data = _range(api, url, start=0, stop=min(FIRST_BYTES, size))
    length = 8 + int.from_bytes(data[:8], "little")
    if length > min(size, 8 + MAX_HEADER_BYTES):
        raise CheckpointError(
            f"'{name}' of '{ref}' declares a header of {length - 8} bytes, but the file has {size}.",
            hint="The file is damaged and was not fetched. Use another revision, or report it to the author.",
        )
    if length > len(data):
        data += _range(api, url, start=len(data), stop=length)
    return data[:length]


def _range(api: HfApi, url: str, *, start: int, stop: int) -> bytes:
    """Fetches the bytes ``start`` to ``stop``, with retries so that one lost packet does not stop a plan."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # noqa: PLC0415 - see fetch

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _range_once(api, url, start=start, stop=stop)
        except HTTPError as error:
            if attempt == _ATTEMPTS or isinstance(error, HfHubHTTPError):
                raise
    raise AssertionError("the loop returns or raises")


def _range_once(api: HfApi, url: str, *, start: int, stop: int) -> bytes:
    from huggingface_hub import get_session, hf_raise_for_status  # noqa: PLC0415 - see fetch
    from huggingface_hub.utils import build_hf_headers  # noqa: PLC0415 - see fetch

    headers = build_hf_headers(token=api.token) | {
        "Range": f"bytes={start}-{stop - 1}",
        "Accept-Encoding": "identity",
    }
    with get_session().stream("GET", url, headers=headers, timeout=_SECONDS) as response:
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        skip = 0 if response.status_code == 206 else start
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= skip + stop - start:
                break
    if len(data) < skip + stop - start:
        raise HubError(f"The Hub sent {len(data)} bytes of '{url}' instead of {stop - start}.", hint="Try again later.")
    return bytes(data[skip : skip + stop - start])


# without the network


def _from_cache(ref: ModelRef, *, weights: bool, files: tuple[str, ...] | None) -> HubSnapshot:
    """Returns the checkpoint from the cache, as earlier runs left it."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - see fetch
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415 - see fetch

    patterns = [*_SMALL, *SIDECAR_PATTERNS]
    try:
        folder = Path(
            snapshot_download(ref.location, revision=ref.revision, allow_patterns=patterns, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        raise _not_cached(f"'{ref}' is not in the Hub's cache.") from None
    paths = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    try:
        names = _weight_names(folder, sizes, ref) if files is None else files
    except CheckpointError:
        raise _not_cached(f"The weights of '{ref}' are not in the Hub's cache.") from None
    headers = None if weights else {name: _local_header(folder / name) for name in names}
    digests = {name: path.resolve().name for name, path in paths.items()}
    digests = {name: digest for name, digest in digests.items() if _SHA256.fullmatch(digest)}
    return HubSnapshot(folder, folder.name, headers, sizes, digests)


def _not_cached(message: str) -> HubError:
    return HubError(message, hint="Run once with a network connection and without HF_HUB_OFFLINE.")


# what went wrong


def redact(text: str, *, token: str | None = None) -> str:
    """Removes tokens from a text of another library.

    Args:
        text: Message of the Hub or of its library.
        token: Token that the caller passed explicitly; the environment's token is removed too.

    Returns:
        The text, with every token replaced by ``***``.
    """
    from huggingface_hub import get_token  # noqa: PLC0415 - see fetch

    for secret in (token, get_token()):
        if secret:
            text = text.replace(secret, "***")
    return _TOKEN.sub("***", text)


@contextmanager
def hub_errors(
    repo_id: str, *, revision: str | None = None, token: str | None = None, explain: _Explain | None = None
) -> Iterator[None]:
    """Turns errors of the Hub's library into one sentence without tokens.

    Args:
        repo_id: Id of the requested repository.
        revision: Requested revision, for messages.
        token: Token that the caller passed explicitly, which must not appear in messages.
        explain: Returns the hint for a missing ``"repository"``, ``"revision"`` or ``"permission"``.

    Raises:
        CheckpointError: The repository or the revision does not exist.
        HubError: The Hub refused, or could not be reached.
        StorageError: The disk is full.
    """
    from huggingface_hub.errors import HTTPError  # noqa: PLC0415 - see fetch

    try:
        yield
    except McomposeError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _translate(_cause(error), repo_id, revision=revision, token=token, explain=explain) from None


def _cause(error: BaseException) -> BaseException:
    """Returns the original error of an upload thread, which the library wraps into a RuntimeError."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _translate(
    error: BaseException, repo_id: str, *, revision: str | None, token: str | None, explain: _Explain | None
) -> McomposeError:
    from huggingface_hub import errors  # noqa: PLC0415 - see fetch

    if isinstance(error, errors.HFValidationError):
        return HubError(f"'{repo_id}' is not a valid repository name.", hint="Write it as 'org/name'.")
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"'{repo_id}' is gated.",
            hint=f"Accept its terms on {_page(repo_id)}. {LOG_IN}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"'{repo_id}' does not have the revision '{revision}'.", hint=explain("revision") if explain else ""
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"The Hub does not have a repository '{repo_id}' that this token may see.",
            hint=explain("repository") if explain else LOG_IN,
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, repo_id, token=token, explain=explain)
    return _unreachable(error, repo_id, token=token)


def _refused(error: Any, repo_id: str, *, token: str | None, explain: _Explain | None) -> HubError:
    status = getattr(error.response, "status_code", 0)
    if status == 401:
        return HubError(f"The Hub does not accept the token that was sent for '{repo_id}'.", hint=LOG_IN)
    if status == 403:
        return HubError(
            f"The token does not have the permission to do this in '{repo_id}'.",
            hint=explain("permission") if explain else "Use a token that has the permission.",
        )
    reason = first_line(redact(str(error.server_message or error), token=token))
    return HubError(f"The Hub answered {status} for '{repo_id}': {reason}.", hint="Try again later.")


def _unreachable(error: BaseException, repo_id: str, *, token: str | None) -> McomposeError:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageError("The disk is full.", hint="Free some space, or move the Hub's cache with HF_HOME.")
    reason = first_line(redact(str(error) or type(error).__name__, token=token))
    return HubError(
        f"The connection to the Hub failed for '{repo_id}': {reason}.",
        hint="Check the connection and run again; fetched files are kept.",
    )


def _explain(api: HfApi, ref: ModelRef, kind: str) -> str:
    """Returns the hint for a name that the Hub does not have: the nearest name that it has."""
    from huggingface_hub import get_token  # noqa: PLC0415 - see fetch
    from huggingface_hub.errors import HTTPError  # noqa: PLC0415 - see fetch

    if kind == "permission":
        return "Use a token that may read it."
    try:
        if kind == "revision":
            refs = api.list_repo_refs(ref.location)
            return nearest_name(str(ref.revision), [row.name for row in [*refs.branches, *refs.tags]])
        author, _, _ = ref.location.partition("/")
        known = [model.id for model in api.list_models(author=author, limit=500)]
    except (HTTPError, OSError, ValueError):
        known = []
    near = nearest_name(ref.location, known)
    near = f"{near} " if near.startswith("Did you mean") else ""
    private = "If it is private, this token may not see it." if api.token or get_token() else ""
    return near + (private or f"Check the spelling; if it is private or gated: {LOG_IN[0].lower()}{LOG_IN[1:]}")


def _page(repo_id: str) -> str:
    return f"https://huggingface.co/{repo_id}"
