"""A Hugging Face Hub on loopback, small enough to read: what the libraries ask to push and fetch.

It keeps everything in memory, serves large files through a redirect to another host name as the real one does
(so that a forwarded token would be seen), logs requests, and misbehaves as ``FakeHub.faults`` says. Clients
start in their own process with ``FakeHub.environment(...)``: libraries read it at import.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fake_hub_state import Blob, Faults, Repo, Request, git_oid

LFS_FROM = 10_000_000
WRITE_TOKEN = "hf_fakeWriteTokenOfTheTests0123456789"
READ_TOKEN = "hf_fakeReadTokenOfTheTests00123456789"


class FakeHub:
    """Use as a context manager; ``hub.repos`` is the state, ``hub.log`` the requests."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults = Faults()
        self.users = {WRITE_TOKEN: ("tester", "write"), READ_TOKEN: ("reader", "read")}
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeHub:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def environment(self, home: Path, *, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Variables that make a fresh process talk to this Hub only."""
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        settings |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        return settings | ({"HF_TOKEN": token} if token else {})

    def add(self, repo_id: str, files: dict[str, bytes], **flags: bool) -> str:
        """Puts a repository there, as if pushed long ago; returns its commit."""
        repo = self.repos.setdefault(repo_id, Repo(repo_id, **flags))
        return repo.commit({path: Blob(data, _is_lfs(path, len(data))) for path, data in files.items()})

    def sent(self, path_part: str) -> int:
        """Body bytes served for paths that contain ``path_part``."""
        return sum(r.sent for r in self.log if path_part in r.path)


def _is_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith((".safetensors", ".bin", ".png")) or size >= LFS_FROM)


class _Reply(Exception):
    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        header = self.headers.get
        self.record = Request(self.command, unquote(url.path), header("Authorization", ""), header("Range", ""))
        self.hub.log.append(self.record)
        try:
            if self.command == "PUT" and self._take_fault("reset_uploads"):
                self.rfile.read(int(header("Content-Length", "2")) // 2)
                self._reset()
                return
            self.body = self._read_body()
            for method, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in method:
                    action(self, *(unquote(g) for g in match.groups()))
            raise _Reply(404, {"error": f"no route {self.command} {url.path}"})
        except _Reply as reply:
            self._send(reply)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, reply: _Reply) -> None:
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body or {}).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(data)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if "/cdn/" in self.path and self._take_fault("reset_downloads"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self._reset()
            return
        self.wfile.write(data)
        self.record.sent = len(data)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _take_fault(self, name: str) -> bool:
        with self.hub.lock:
            left = getattr(self.hub.faults, name)
            setattr(self.hub.faults, name, max(0, left - 1))
        return left > 0

    def _json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    # who may do what

    def _user(self) -> tuple[str, str] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.hub.users:
            words = "Invalid credentials in Authorization header"
            echo = f" ({token})" if self.hub.faults.echo_token else ""
            raise _Reply(401, {"error": words + echo}, X_Error_Message=words)
        return self.hub.users[token]

    def _writer(self, *, pull_request: bool = False) -> str:
        user = self._user()
        if user is None:
            raise _Reply(401, {"error": "Invalid username or password."})
        if user[1] != "write" and not pull_request:
            words = "Forbidden: you must use a write token to upload to a repository."
            words += f" {self.headers.get('Authorization')}" if self.hub.faults.echo_token else ""
            raise _Reply(403, {"error": words}, X_Error_Message=words)
        return user[0]

    def _repo(self, repo_id: str) -> Repo:
        user = self._user()
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and user is None):
            raise _Reply(404 if user else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return repo

    def _commit(self, repo_id: str, revision: str) -> tuple[Repo, str]:
        repo = self._repo(repo_id)
        oid = repo.resolve(revision)
        if oid is None:
            raise _Reply(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return repo, oid

    # questions

    def whoami(self) -> None:
        user = self._user()
        if user is None:
            raise _Reply(401, {"error": "Invalid username or password."})
        raise _Reply(200, {"type": "user", "name": user[0], "orgs": [], "auth": {"accessToken": {"role": user[1]}}})

    def info(self, repo_id: str, revision: str = "main") -> None:
        repo, oid = self._commit(repo_id, revision)
        rows = [{"rfilename": p, "blobId": b.entry()["oid"], **b.entry()} for p, b in repo.commits[oid].items()]
        body = {"id": repo_id, "modelId": repo_id, "sha": oid, "siblings": rows, "private": repo.private}
        raise _Reply(200, {**body, "gated": "auto" if repo.gated else False, "tags": [], "downloads": 0})

    def tree(self, repo_id: str, revision: str) -> None:
        repo, oid = self._commit(repo_id, revision)
        raise _Reply(200, [{"type": "file", "path": p, **b.entry()} for p, b in repo.commits[oid].items()])

    def refs(self, repo_id: str) -> None:
        repo = self._repo(repo_id)
        rows = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items() if "/" not in n]
        raise _Reply(200, {"branches": rows, "tags": [], "converts": [], "pullRequests": []})

    def list_models(self) -> None:
        rows = [{"id": repo_id, "modelId": repo_id} for repo_id, repo in self.hub.repos.items() if not repo.private]
        author = self.query.get("author", "")
        raise _Reply(200, [row for row in rows if row["id"].startswith(f"{author}/")])

    # files

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo, oid = self._commit(repo_id, revision)
        if repo.gated:
            raise _Reply(403, {"error": "Access to model is restricted"}, X_Error_Code="GatedRepo")
        blob = repo.commits[oid].get(path)
        if blob is None:
            raise _Reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{git_oid(blob.data)}"', "Accept-Ranges": "bytes"}
        if not blob.lfs:
            self._slice(blob.data, headers)
        self.hub.objects.setdefault(blob.sha256, blob.data)
        headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        reply = _Reply(302, b"")
        reply.headers = {**headers, "Location": f"http://localhost:{self.hub.port}/cdn/{path}/{blob.sha256}"}
        raise reply

    def cdn(self, path: str, oid: str) -> None:
        self._slice(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _slice(self, data: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        reply = _Reply(200, data)
        reply.headers = headers
        if asked and not self.hub.faults.ignore_range:
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            reply.status, reply.body = 206, data[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        raise reply

    # writes

    def create(self) -> None:
        asked = self._json()
        user = self._writer()
        repo_id = f"{asked.get('organization') or user}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}
        if repo_id.split("/")[0] == "forbidden":
            raise _Reply(403, {"error": "You don't have the rights to create a model under this namespace"})
        if repo_id in self.hub.repos:
            raise _Reply(409, {"error": "You already created this model repo", **url})
        repo = Repo(repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)}, message="initial commit")
        self.hub.repos[repo_id] = repo
        raise _Reply(200, url)

    def validate_yaml(self) -> None:
        raise _Reply(200, {"errors": [], "warnings": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        self._writer(pull_request=self.query.get("create_pr") == "1")
        repo, oid = self._commit(repo_id, revision)
        rows = []
        for file in self._json()["files"]:
            known = repo.commits[oid].get(file["path"])
            mode = "lfs" if _is_lfs(file["path"], file["size"]) else "regular"
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known and known.etag})
        raise _Reply(200, {"files": rows})

    def lfs_batch(self, repo_id: str) -> None:
        rows = []
        for wanted in self._json()["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                href = f"{self.hub.endpoint}/storage/{wanted['oid']}"
                row["actions"] = {"upload": {"href": href}, "verify": {"href": f"{self.hub.endpoint}/verify"}}
            rows.append(row)
        raise _Reply(200, {"transfer": "basic", "objects": rows})

    def put(self, oid: str) -> None:
        self.hub.objects[oid] = self.body
        raise _Reply(200, b"", ETag=f'"{oid}"')

    def verify(self) -> None:
        asked = self._json()
        raise _Reply(200 if len(self.hub.objects.get(asked["oid"], b"")) == asked["size"] else 422)

    def commit(self, repo_id: str, revision: str) -> None:
        pull_request = self.query.get("create_pr") == "1"
        self._writer(pull_request=pull_request)
        if self._take_fault("fail_commits"):
            echo = self.headers.get("Authorization") if self.hub.faults.echo_token else ""
            raise _Reply(500, {"error": f"Internal error {echo}"})
        repo, oid = self._commit(repo_id, revision)
        files, message = dict(repo.commits[oid]), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            message = operation["value"].get("summary", message)
            self._apply(files, operation["key"], operation["value"])
        number = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
        ref = f"refs/pr/{number}" if pull_request else revision
        new = repo.commit(files, ref=ref, message=message)
        reply = {
            "success": True,
            "commitOid": new,
            "commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{new}",
        }
        raise _Reply(200, {**reply, "pullRequestUrl": f"{self.hub.endpoint}/{repo_id}/discussions/{number}"})

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        path = value.get("path", "")
        if key == "deletedFile":
            del files[path]
        elif key == "file":
            files[path] = Blob(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            files[path] = Blob(self.hub.objects[value["oid"]], lfs=True)
        if path in self.hub.faults.corrupt:
            files[path] = Blob(bytes([files[path].data[0] ^ 1]) + files[path].data[1:], files[path].lfs)
        if path in self.hub.faults.lose:
            files.pop(path, None)


_ID = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("GET",), "/api/models", _Handler.list_models),
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("GET",), f"/api/models/{_ID}", _Handler.info),
    (("GET",), f"/api/models/{_ID}/refs", _Handler.refs),
    (("GET",), f"/api/models/{_ID}/revision/([^/]+)", _Handler.info),
    (("GET",), f"/api/models/{_ID}/tree/([^/]+)", _Handler.tree),
    (("POST",), f"/api/models/{_ID}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), f"/api/models/{_ID}/commit/([^/]+)", _Handler.commit),
    (("POST",), rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), "/storage/([0-9a-f]{64})", _Handler.put),
    (("POST",), "/verify", _Handler.verify),
    (("GET", "HEAD"), f"/{_ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (("GET", "HEAD"), "/cdn/(.+)/([0-9a-f]{64})", _Handler.cdn),
]
