"""A Hugging Face Hub of one's own: as much of its API as pushing and downloading models needs, and trouble on demand.

Processes that are to talk to it are started with `FakeHub.environment`; storage by Xet is not spoken.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import re
import socket
import struct
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclasses.dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """As the Hub compares files: SHA-256 of a large one, else git's hash."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Commit:
    oid: str
    summary: str
    files: dict[str, File]


@dataclasses.dataclass
class Repo:
    private: bool
    branches: dict[str, list[Commit]]

    def commit(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next(
            (one for branch in self.branches.values() for one in branch if one.oid == revision),
            None,
        )


@dataclasses.dataclass(frozen=True)
class Request:
    method: str
    path: str
    authorization: str | None
    body: Any = None  # of JSON


class FakeHub(contextlib.AbstractContextManager):
    """Runs inside a `with`.

    Attributes:
        token: the one that may write. repos: USER/NAME → what is there. blobs: SHA-256 → large files that are up.
        requests: all that were made, those of a fault included.
        faults: what is to go wrong, each a dict with `match` (a part of "METHOD /path"), `times` (default 1), and either `status` (with
            `headers` and `error`, its message) or `drop`: "half" closes the connection after half of the request's body, "answer" does what
            was asked and closes it instead of answering, "never" keeps it open and says nothing.
    """

    def __init__(self, token: str):
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[dict[str, Any]] = []
        self.lock, self.over = threading.RLock(), threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads, self.server.hub = True, self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: pathlib.Path, **extra: str) -> dict[str, str]:
        """The variables of a process that knows no other Hub and keeps its files below `home`."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(("HF_", "HUGGING"))
        }
        kept |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return kept | extra

    def asked(self, match: str) -> list[Request]:
        """The requests with `match` in "METHOD /path"."""
        return [request for request in self.requests if match in f"{request.method} {request.path}"]

    def fault(self, line: str) -> dict[str, Any]:
        """What is to go wrong with this request, which uses it up."""
        for fault in self.faults:
            if fault["match"] in line and fault.setdefault("times", 1) > 0:
                fault["times"] -= 1
                return fault
        return {}


class _Refusal(Exception):
    def __init__(self, status: int, error: str, code: str = "", **content: str):
        super().__init__(error)
        self.status, self.code, self.content = status, code, {"error": error, **content}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    _ROUTES = (
        (("POST",), r"/api/repos/create", "create"),
        (("GET",), r"/api/whoami-v2", "whoami"),
        (("POST",), r"/api/validate-yaml", "validate"),
        (("POST",), r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
        (
            ("POST",),
            r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)",
            "preupload",
        ),
        (("POST",), r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        (("POST",), r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        (("POST",), r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/verify", "verify"),
        (("PUT",), r"/storage/(?P<oid>\w+)", "store"),
        (("GET",), r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        (("GET",), r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        (
            ("GET", "HEAD"),
            r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)",
            "resolve",
        ),
    )

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, path = self.server.hub, urlsplit(self.path).path
        line = f"{self.command} {path}"
        with hub.lock:
            fault = hub.fault(line)
        body = self.body(half=fault.get("drop") == "half")
        is_json = body and "json" in self.headers.get("Content-Type", "")
        lines = (
            [json.loads(part) for part in body.splitlines()]
            if is_json and fault.get("drop") != "half"
            else [None]
        )
        parsed = lines if "ndjson" in self.headers.get("Content-Type", "") else lines[0]
        with hub.lock:
            hub.requests.append(
                Request(self.command, path, self.headers.get("Authorization"), parsed)
            )
        if fault.get("drop") == "never":
            hub.over.wait()
        if fault.get("drop") in ("half", "never"):
            return self.hang_up()
        if "status" in fault:
            error = fault.get("error", f"fault {fault['status']}")
            return self.answer(fault["status"], {"error": error}, fault.get("headers", {}))
        try:
            with hub.lock:
                content, headers = self.route(path, parsed if is_json else body)
        except _Refusal as refusal:
            headers = (
                {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
                if refusal.code
                else {}
            )
            return self.answer(refusal.status, refusal.content, headers)
        if fault.get("drop") == "answer":
            return self.hang_up()
        return self.answer(200, content, headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def body(self, *, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            return self.rfile.read(length // 2 if half else length)
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if half:
                return b"".join(parts)
        self.rfile.readline()
        return b"".join(parts)

    def hang_up(self):
        # Without lingering the other side gets a reset, as of a machine that went away.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def answer(self, status: int, content: Any, headers: dict[str, str]):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self, path: str, body: Any) -> tuple[Any, dict[str, str]]:
        """What to answer, as bytes or as something for JSON, and its headers."""
        matches = (
            (name, re.fullmatch(pattern, path))
            for methods, pattern, name in self._ROUTES
            if self.command in methods
        )
        name, match = next((found for found in matches if found[1]), (None, None))
        if name is None:
            raise _Refusal(404, f"{self.command} {path} is nothing that this Hub knows")
        given = {key: unquote(value) for key, value in match.groupdict(default="main").items()}
        hub, may_write = (
            self.server.hub,
            self.headers.get("Authorization") == f"Bearer {self.server.hub.token}",
        )
        if not may_write and name not in ("store", "info", "tree", "resolve"):
            raise _Refusal(401, "Invalid username or password.")
        if "repo" in given:
            given["repo_id"], given["repo"] = given["repo"], hub.repos.get(given["repo"])
            if given["repo"] is None or (given["repo"].private and not may_write):
                raise _Refusal(404 if may_write else 401, "Repository not found", "RepoNotFound")
        if "revision" in given and name != "branch":
            given["commit"] = given["repo"].commit(given["revision"])
            if given["commit"] is None:
                raise _Refusal(404, f"Invalid rev id: {given['revision']}", "RevisionNotFound")
        result = getattr(self, f"on_{name}")(body, **given)
        return result if isinstance(result, tuple) else (result, {})

    def on_whoami(self, body):
        return {"type": "user", "name": "me"}

    def on_validate(self, body):
        if "\t" in body["content"].partition("\n---\n")[0]:
            raise _Refusal(400, "YAML metadata is malformed: tabs")
        return {"errors": [], "warnings": []}

    def on_create(self, body):
        hub, repo_id = self.server.hub, f"{body['organization']}/{body['name']}"
        if repo_id in hub.repos:
            raise _Refusal(409, "You already created this model repo", url=f"{hub.url}/{repo_id}")
        private = body.get("private") or body.get("visibility") == "private"
        first = self.commit_of(
            repo_id, "initial commit", {".gitattributes": File(GIT_ATTRIBUTES, False)}
        )
        hub.repos[repo_id] = Repo(private, {"main": [first]})
        return {"url": f"{hub.url}/{repo_id}", "name": repo_id}

    def on_branch(self, body, repo, repo_id, revision):
        if revision in repo.branches:
            raise _Refusal(409, f"Reference already exists: {revision}")
        repo.branches[revision] = list(repo.branches["main"])
        return {}

    def on_preupload(self, body, repo, repo_id, revision, commit):
        def mode(file):
            large = file["path"].endswith(".safetensors") or b"\0" in base64.b64decode(
                file["sample"]
            )
            there = commit.files.get(file["path"])
            oid = {"oid": there.oid} if there else {}
            return {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                **oid,
            }

        return {"files": [mode(file) for file in body["files"]], "commitOid": commit.oid}

    def on_batch(self, body, repo, repo_id):
        hub = self.server.hub

        def entry(wanted):
            actions = {
                "upload": {"href": f"{hub.url}/storage/{wanted['oid']}"},
                "verify": {"href": f"{hub.url}/{repo_id}.git/info/lfs/verify"},
            }
            return wanted if wanted["oid"] in hub.blobs else {**wanted, "actions": actions}

        return {"transfer": "basic", "objects": [entry(wanted) for wanted in body["objects"]]}

    def on_store(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, "BadDigest")
        self.server.hub.blobs[oid] = body
        return b""

    def on_verify(self, body, repo, repo_id):
        if len(self.server.hub.blobs.get(body["oid"], b"")) != body["size"]:
            raise _Refusal(400, "not what was announced")
        return {}

    def on_commit(self, body, repo, repo_id, revision, commit):
        hub, files, summary = self.server.hub, dict(commit.files), ""
        for line in body:
            value = line["value"]
            if line["key"] == "header":
                summary = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile" and value["oid"] in hub.blobs:
                files[value["path"]] = File(hub.blobs[value["oid"]], True)
            else:
                raise _Refusal(400, f"cannot commit {line}")
        new = self.commit_of(repo_id, summary, files, parent=commit.oid)
        repo.branches[revision].append(new)
        return {
            "success": True,
            "commitOid": new.oid,
            "commitUrl": f"{hub.url}/{repo_id}/commit/{new.oid}",
        }

    def commit_of(
        self, repo_id: str, summary: str, files: dict[str, File], parent: str = ""
    ) -> Commit:
        content = json.dumps(
            [repo_id, parent, summary, {name: file.oid for name, file in sorted(files.items())}]
        )
        return Commit(hashlib.sha1(content.encode()).hexdigest(), summary, files)

    def on_info(self, body, repo, repo_id, revision, commit):
        siblings = [{"rfilename": name} for name in sorted(commit.files)]
        return {
            "id": repo_id,
            "modelId": repo_id,
            "sha": commit.oid,
            "private": repo.private,
            "siblings": siblings,
        }

    def on_tree(self, body, repo, repo_id, revision, commit):
        def entry(name, file):
            size = len(file.content)
            large = {"lfs": {"oid": file.oid, "size": size, "pointerSize": 134}} if file.lfs else {}
            return {"type": "file", "path": name, "size": size, "oid": file.oid[:40], **large}

        return [entry(name, file) for name, file in sorted(commit.files.items())]

    def on_resolve(self, body, repo, repo_id, revision, commit, name):
        file = commit.files.get(name)
        if file is None:
            raise _Refusal(404, "Entry not found", "EntryNotFound")
        kind = {"Content-Type": "application/octet-stream"}
        return file.content, {
            "ETag": f'"{file.oid}"',
            "X-Repo-Commit": commit.oid,
            "Accept-Ranges": "none",
            **kind,
        }
