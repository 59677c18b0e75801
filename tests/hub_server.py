"""A stand-in for the Hugging Face Hub: its HTTP interface as far as `huggingface_hub` and `datasets` use it here.

Data sets, and models to be read, with one branch and no history but the commits' names. Small texts travel in the
commit, all else as objects of large file storage, as on the Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_standin"
LARGE = (".safetensors", ".parquet", ".png", ".npy")


@dataclass
class Repository:
    """One data set: the files of every commit, by name."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    private: bool = False

    @property
    def head(self) -> tuple[str, dict[str, bytes]]:
        return self.commits[-1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.head
        return next((one for one in self.commits if one[0] == revision), None)

    def commit(self, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits.append((name, files))
        return name


@dataclass
class Hub:
    """What the stand-in holds, and what was asked of it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)  #: method and path
    writers: set[str] = field(default_factory=lambda: {TOKEN})
    broken: dict[str, int] = field(default_factory=dict)  #: part of a path -> status that it is answered with

    def put(self, name: str, files: dict[str, bytes]) -> None:
        self.repositories.setdefault(name, Repository()).commit(files)

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for."""
        return sorted(
            {p.split("/resolve/")[1].split("/", 1)[1] for m, p in self.asked if m == "GET" and "resolve" in p}
        )


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer_read()

    def do_HEAD(self) -> None:
        self._answer_read()

    def do_POST(self) -> None:
        self._answer("POST", self._body())

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.asked.append(("PUT", self.path))
        if self._is_broken():
            return
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() != oid:
            return self._error(400, "the object is not what its name says")
        self.hub.objects[oid] = data
        self._send(200, b"")

    def _answer_read(self) -> None:
        self._answer(self.command, b"")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _is_broken(self) -> bool:
        for part, status in self.hub.broken.items():
            if part in self.path:
                self._error(status, "broken on purpose")
                return True
        return False

    def _answer(self, method: str, body: bytes) -> None:
        self.hub.asked.append((method, self.path))
        if self._is_broken():
            return
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found:
                return answer(self, body, **found.groupdict())
        self._error(404, f"the stand-in has no {path}")

    def _send(self, status: int, data: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _error(self, status: int, text: str, code: str = "") -> None:
        told = {"X-Error-Message": text, **({"X-Error-Code": code} if code else {})}
        self._send(status, {"error": text}, told)

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _found(self, name: str) -> Repository | None:
        there = self.hub.repositories.get(name)
        if there is None or (there.private and self.token not in self.hub.writers):
            self._error(404 if self.token else 401, "Repository not found", "RepoNotFound")
            return None
        return there

    def _may_write(self) -> bool:
        if self.token in self.hub.writers:
            return True
        self._error(401 if self.token != "hf_reader" else 403, "this token may not write")
        return False

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if not self._may_write():
            return
        if name in self.hub.repositories:
            return self._error(409, "You already created this dataset repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private=private)
        self.hub.put(name, {".gitattributes": b"*.png filter=lfs\n"})
        self._send(200, {"url": f"{self.hub.url}/datasets/{name}", "name": name})

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        there = self._found(name)
        if there is None:
            return
        state = there.at(revision)
        if state is None:
            return self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        sizes = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [
            {"rfilename": file, **({"size": len(data), "blobId": oid_of(data)} if sizes else {})}
            for file, data in state[1].items()
        ]
        told = {"id": name, "sha": state[0], "private": there.private, "siblings": siblings, "tags": [], "gated": False}
        self._send(200, {**told, "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"})

    def tree(self, body: bytes, name: str, revision: str, inside: str = "") -> None:
        there = self._found(name)
        state = None if there is None else there.at(revision)
        if state is None:
            return None if there is None else self._error(404, "Invalid rev id", "RevisionNotFound")
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        self._send(200, list(listed(state[1], inside.strip("/"), recursive)))

    def paths(self, body: bytes, name: str, revision: str) -> None:
        there = self._found(name)
        state = None if there is None else there.at(revision)
        if state is None:
            return
        known = parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
        wanted = known.get("paths", [])
        every = {one["path"]: one for one in everything(state[1])}
        self._send(200, [every[path.strip("/")] for path in wanted if path.strip("/") in every])

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        there = self._found(name)
        state = None if there is None else there.at(revision)
        if there is None:
            return
        if state is None:
            return self._error(404, "Invalid rev id", "RevisionNotFound")
        headers = {"X-Repo-Commit": state[0]}
        if file not in state[1]:
            told = {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._send(404, {"error": "Entry not found"}, told)
        data = state[1][file]
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        told = {**headers, "ETag": f'"{oid_of(data)}"', "Content-Type": "application/octet-stream"}
        if part and self.command == "GET":
            first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
            told["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self._send(206, data[first : last + 1], told)
        self._send(200, data, told)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if self._found(name) is None or not self._may_write():
            return
        files = json.loads(body)["files"]
        told = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
            for f in files
        ]
        self._send(200, {"files": told})

    def batch(self, body: bytes, name: str) -> None:
        if not self._may_write():
            return
        objects = []
        for one in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/objects/{one['oid']}"}}
            objects.append({**one, **({} if one["oid"] in self.hub.objects else {"actions": actions})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        there = self._found(name)
        if there is None or not self._may_write():
            return
        files = dict(there.head[1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", there.head[0]) != there.head[0]:
                return self._error(412, "A commit has happened since")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = there.commit(files)
        self._send(200, {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{made}", "commitOid": made})

    def valid(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})


def oid_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def everything(files: dict[str, bytes]) -> Iterator[dict[str, Any]]:
    """Files and folders, as the Hub lists them."""
    folders = {"/".join(file.split("/")[:k]) for file in files for k in range(1, file.count("/") + 1)}
    yield from ({"type": "directory", "path": one, "oid": "0" * 40, "size": 0} for one in sorted(folders))
    for file, data in files.items():
        large = {"lfs": {"oid": oid_of(data), "size": len(data), "pointerSize": 130}} if file.endswith(LARGE) else {}
        yield {"type": "file", "path": file, "oid": oid_of(data)[:40], "size": len(data), **large}


def listed(files: dict[str, bytes], inside: str, recursive: bool) -> Iterator[dict[str, Any]]:
    for one in everything(files):
        below = one["path"].removeprefix(f"{inside}/") if inside else one["path"]
        if (not inside or below != one["path"]) and (recursive or "/" not in below):
            yield one


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.valid),
    (rf"/api/datasets/{NAME}", Handler.info),
    (rf"/api/datasets/{NAME}/revision/{REVISION}", Handler.info),
    (rf"/api/datasets/{NAME}/tree/{REVISION}(?P<inside>/.*)?", lambda self, body, inside=None, **more: self.tree(
        body, inside=inside or "", **more
    )),
    (rf"/api/datasets/{NAME}/paths-info/{REVISION}", Handler.paths),
    (rf"/api/datasets/{NAME}/preupload/{REVISION}", Handler.preupload),
    (rf"/api/datasets/{NAME}/commit/{REVISION}", Handler.commit),
    (rf"/datasets/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (rf"/datasets/{NAME}/resolve/{REVISION}/(?P<file>.+)", Handler.resolve),
    (rf"/api/models/{NAME}/revision/{REVISION}", Handler.info),
    (rf"/api/models/{NAME}/tree/{REVISION}(?P<inside>/.*)?", lambda self, body, inside=None, **more: self.tree(
        body, inside=inside or "", **more
    )),
    (rf"/{NAME}/resolve/{REVISION}/(?P<file>.+)", Handler.resolve),
]  # fmt: skip


@contextmanager
def serving() -> Iterator[Hub]:
    """The stand-in on a port of 127.0.0.1."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients ask this address, and keep what they get in this folder."""
    import datasets
    import huggingface_hub.constants as known

    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(known, "ENDPOINT", url)
    monkeypatch.setattr(known, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(known, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(known, "HF_TOKEN_PATH", str(cache / "no token"))
    monkeypatch.setattr(known, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(known, "HF_HUB_DISABLE_XET", True, raising=False)  # the stand-in has Git LFS alone
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
