"""A model hub on loopback: enough of huggingface.co's protocol for its client to download from, and to fail at.

Revisions resolve to commits, small files come through a relative redirect, large ones from a "CDN" with an ETag and
byte ranges; repos can be gated; connections can be cut after so many bytes. Every request is logged. What concerns
uploads stands in hub_uploads.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from helpers.hub_uploads import answer_post, file_info


@dataclass
class Repo:
    """One model repo: files of a single commit, reachable as ``main``, by ``tags`` and by the commit itself."""

    files: dict[str, bytes]
    tags: tuple[str, ...] = ()
    token: str | None = None  # set: gated, open to this token only
    status: int | None = None  # set: every request is answered with it
    commit: str = ""
    visibility: str = "public"

    def __post_init__(self) -> None:
        content = "".join(f"{name}:{hashlib.sha256(data).hexdigest()}" for name, data in sorted(self.files.items()))
        self.commit = self.commit or hashlib.sha1(content.encode()).hexdigest()


@dataclass
class Request:
    method: str
    path: str
    range: str | None = None


@dataclass
class HubServer:
    """``with HubServer(repos) as hub: hub.url ...``"""

    repos: dict[str, Repo]
    log: list[Request] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)  # one per coming CDN download: cut it after so many bytes
    write_token: str | None = None  # that POST and PUT need
    storage: dict[str, bytes] = field(default_factory=dict)  # sent, by sha256, whether committed or not
    sent: list[str] = field(default_factory=list)  # sha256 of every object that arrived whole
    commits: list[str] = field(default_factory=list)  # their summaries
    on_sent: Callable[[int], None] = lambda count: None  # called with how many arrived

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.cdn = self.url.replace("127.0.0.1", "localhost")  # another host, as the real one is
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self.connections:  # those kept alive would still be answered
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def downloads(self) -> list[Request]:
        """The GET requests so far."""
        return [request for request in self.log if request.method == "GET"]

    def at(self, name: str, revision: str) -> Repo:
        """A repo at a branch."""
        return self.branch(name, revision) or self.repos[name]

    def branch(self, name: str, revision: str) -> Repo | None:
        """The branch of a repo that is called so, or is at that commit; None for ``main``."""
        branches = {key: repo for key, repo in self.repos.items() if key.startswith(f"{name}@")}
        named = branches.get(f"{name}@{revision}")
        return named or next((repo for repo in branches.values() if repo.commit == revision), None)

    def blob(self, digest: str) -> bytes | None:
        if digest in self.storage:
            return self.storage[digest]
        every = (data for repo in self.repos.values() for data in repo.files.values())
        return next((data for data in every if hashlib.sha256(data).hexdigest() == digest), None)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients are killed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").removesuffix(".git").replace(".git/", "/").split("/")
        if "paths-info" in words:
            self._answer()
            return
        body = self._body()
        self.hub.log.append(Request("POST", urlsplit(self.path).path))
        if words != ["api", "validate-yaml"] and not self._may_write(words):
            return
        status, answer = answer_post(self.hub, words, body) or (404, {"error": "unknown path"})
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def do_PUT(self) -> None:
        digest = urlsplit(self.path).path.rpartition("/")[2]
        body = self._body()
        if hashlib.sha256(body).hexdigest() != digest:  # cut off, or not what was announced
            self._send(400, b"not what was announced")
            return
        self.hub.storage[digest] = body
        self.hub.sent.append(digest)
        self.hub.on_sent(len(self.hub.sent))
        self._send(200, b"")

    def _body(self) -> bytes:
        """What was sent along, by its length or in chunks."""
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _may_write(self, words: list[str]) -> bool:
        """Whether the token is right; an error has been sent where it isn't."""
        said = self.headers.get("Authorization")
        if self.hub.write_token is None or said == f"Bearer {self.hub.write_token}":
            return True
        self._send(403 if said else 401, json.dumps({"error": "You don't have the rights"}).encode())
        return False

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(Request(self.command, path, self.headers.get("Range")))
        words = path.strip("/").split("/")
        if words[0] == "cdn":
            self._send_blob(words[1])
        elif words[:2] == ["api", "resolve-cache"]:
            name, commit = "/".join(words[2:4]), words[4]
            repo = self.hub.branch(name, commit) or self.hub.repos[name]
            self._send_small(repo, repo.files["/".join(words[5:])])
        elif words[:2] == ["api", "models"] and words[4] == "tree":
            self._send_tree("/".join(words[2:4]), words[5])
        elif words[:2] == ["api", "datasets"]:
            self._dataset("/".join(words[2:4]), words[4:])
        elif words[0] == "datasets" and words[3] == "resolve":
            self._resolve("/".join(words[1:3]), words[4], "/".join(words[5:]))
        elif words[2:3] == ["resolve"]:
            self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))
        else:
            self._send(404, b"unknown path")

    def _repo(self, name: str, revision: str) -> Repo | None:
        """The repo at that revision, or None when an error has been sent."""
        branch = self.hub.branch(name, revision)
        if branch is not None:
            return branch
        repo = self.hub.repos.get(name)
        if repo is None:
            self._send(401, b"Repository not found", {"X-Error-Code": "RepoNotFound"})
        elif repo.status is not None:
            self._send(repo.status, b"no")
        elif repo.token is not None and self.headers.get("Authorization") != f"Bearer {repo.token}":
            status = 403 if "Authorization" in self.headers else 401
            self._send(status, b"Access is restricted", {"X-Error-Code": "GatedRepo"})
        elif revision not in ("main", repo.commit, *repo.tags):
            self._send(404, b"Invalid rev id", {"X-Error-Code": "RevisionNotFound"})
        else:
            return repo
        return None

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        commit = {"X-Repo-Commit": repo.commit}
        if file not in repo.files:
            self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", **commit})
            return
        data = repo.files[file]
        if file.endswith(".json"):
            location = f"/api/resolve-cache/{name}/{repo.commit}/{file}"
            self._send(307, b"Temporary Redirect", {"Location": location, **commit})
            return
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{digest}"', "ETag": f'"{repo.commit}"'}
        self._send(302, b"Found", {"Location": f"{self.hub.cdn}/cdn/{digest}", **headers, **commit})

    def _send_small(self, repo: Repo, data: bytes) -> None:
        etag = hashlib.sha1(data).hexdigest()
        self._send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit})

    def _send_tree(self, name: str, revision: str) -> None:
        repo = self._repo(name, revision)
        if repo is not None:
            entries = [file_info(path, data) for path, data in repo.files.items()]
            self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _dataset(self, name: str, words: list[str]) -> None:
        """What the hub says of a data set: which commit it is at, and what is known of some of its files."""
        revision = words[1] if len(words) > 1 else "main"
        repo = self._repo(name, revision)
        if repo is None:
            return
        found: object
        if words[:1] == ["tree"] and "recursive=true" in self.path.lower():
            found = [file_info(path, data) for path, data in repo.files.items()]
        elif words[:1] == ["tree"]:
            found = _children(repo, "/".join(words[2:]))
        elif words[:1] == ["paths-info"]:
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
            found = [file_info(path, repo.files[path]) for path in asked if path in repo.files]
        else:
            found = {"id": name, "sha": repo.commit, "siblings": [{"rfilename": path} for path in repo.files]}
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _send_blob(self, digest: str) -> None:
        data = self.hub.blob(digest)
        if data is None:
            self._send(404, b"gone")
            return
        start, headers, status = 0, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}, 200
        if "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            total, start, status = len(data), int(first), 206
            data = data[: int(last) + 1] if last else data
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{total}"
        cut = self.hub.cuts.pop(0) if self.hub.cuts and self.command == "GET" else None
        self._send(status, data[start:], headers, cut)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _children(repo: Repo, folder: str) -> list[dict[str, object]]:
    """The files and folders right in a folder ("" is the repo itself)."""
    start = f"{folder}/" if folder else ""
    inside = [path for path in repo.files if path.startswith(start)]
    folders = sorted({path[len(start) :].split("/")[0] for path in inside if "/" in path[len(start) :]})
    found = [file_info(path, repo.files[path]) for path in inside if "/" not in path[len(start) :]]
    return [*found, *({"type": "directory", "path": start + name, "oid": "0" * 40} for name in folders)]
