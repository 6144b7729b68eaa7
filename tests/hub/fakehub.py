"""A fake Hugging Face Hub for pushing and downloading models, with trouble on demand.

It has as much of the Hub's API as these two need, but not Xet's storage. Processes that talk to it
are started with `FakeHub.environment`.
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
        """The hash by which the Hub compares files: SHA-256 of a large one, else git's."""
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
        for branch in self.branches.values():
            for commit in branch:
                if commit.oid == revision:
                    return commit
        return None


@dataclasses.dataclass(frozen=True)
class Request:
    method: str
    path: str
    authorization: str | None
    body: Any = None  # None if it is not JSON


class FakeHub(contextlib.AbstractContextManager):
    """The server; it runs inside a `with`.

    Attributes:
        token: the one that may write.
        repos: USER/NAME → the repository.
        blobs: SHA-256 → a large file that was uploaded.
        requests: all requests, those with a fault included.
        faults: trouble to come. Each is a dict with `match` (a part of "METHOD /path"), `times`
            (default 1), and either `status` (with `headers` and `error`, its message) or `drop`:
            "half" closes the connection after half of the request's body, "answer" does what was
            asked and closes it instead of answering, "never" keeps it open and says nothing.
    """

    def __init__(self, token: str):
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[dict[str, Any]] = []
        self.lock = threading.RLock()
        self.over = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeHub:
        options = {"poll_interval": 0.05}
        threading.Thread(target=self.server.serve_forever, kwargs=options, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: pathlib.Path, **extra: str) -> dict[str, str]:
        """Returns the variables of a process that knows no other Hub and keeps files in `home`."""
        kept = {}
        for name, value in os.environ.items():
            if not name.upper().startswith(("HF_", "HUGGING")):
                kept[name] = value
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return kept | ours | extra

    def asked(self, match: str) -> list[Request]:
        """Returns the requests with `match` in "METHOD /path"."""
        return [request for request in self.requests if match in f"{request.method} {request.path}"]

    def fault(self, line: str) -> dict[str, Any]:
        """Returns the fault of this request, and uses it up; {} if there is none."""
        for fault in self.faults:
            if fault["match"] in line and fault.setdefault("times", 1) > 0:
                fault["times"] -= 1
                return fault
        return {}


class _Refusal(Exception):
    def __init__(self, status: int, error: str, code: str = "", **content: str):
        super().__init__(error)
        self.status = status
        self.content = {"error": error, **content}
        self.headers = {"X-Error-Code": code, "X-Error-Message": error} if code else {}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    _REPO = r"(?P<repo>[^/]+/[^/]+)"
    _REVISION = r"(?P<revision>[^/]+)"
    # (methods, pattern of the path, name of the handler without "on_")
    _ROUTES = (
        (("POST",), r"/api/repos/create", "create"),
        (("GET",), r"/api/whoami-v2", "whoami"),
        (("POST",), r"/api/validate-yaml", "validate"),
        (("POST",), rf"/api/models/{_REPO}/branch/{_REVISION}", "branch"),
        (("POST",), rf"/api/models/{_REPO}/preupload/{_REVISION}", "preupload"),
        (("POST",), rf"/api/models/{_REPO}/commit/{_REVISION}", "commit"),
        (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
        (("POST",), rf"/{_REPO}\.git/info/lfs/verify", "verify"),
        (("PUT",), r"/storage/(?P<oid>\w+)", "store"),
        (("GET",), rf"/api/models/{_REPO}(/revision/{_REVISION})?", "info"),
        (("GET",), rf"/api/models/{_REPO}/tree/{_REVISION}", "tree"),
        (("GET", "HEAD"), rf"/{_REPO}/resolve/{_REVISION}/(?P<name>.+)", "resolve"),
    )

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub = self.server.hub
        path = urlsplit(self.path).path
        with hub.lock:
            fault = hub.fault(f"{self.command} {path}")

        body = self.body(half=fault.get("drop") == "half")
        parsed = self.parse(body, is_whole=fault.get("drop") != "half")
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

        request_content = body if parsed is None else parsed
        try:
            with hub.lock:
                content, headers = self.route(path, request_content)
        except _Refusal as refusal:
            return self.answer(refusal.status, refusal.content, refusal.headers)
        if fault.get("drop") == "answer":
            return self.hang_up()
        return self.answer(200, content, headers)

    def parse(self, body: bytes, *, is_whole: bool) -> Any:
        """Returns the content of a JSON body, a list for several lines; None for other bodies."""
        kind = self.headers.get("Content-Type", "")
        if not body or not is_whole or "json" not in kind:
            return None
        lines = [json.loads(line) for line in body.splitlines()]
        return lines if "ndjson" in kind else lines[0]

    do_HEAD = do_POST = do_PUT = do_GET

    def body(self, *, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            if half:
                length //= 2
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if half:
                return b"".join(parts)
        self.rfile.readline()
        return b"".join(parts)

    def hang_up(self):
        # Without lingering the other side gets a reset, as if the machine had gone away.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def answer(self, status: int, content: Any, headers: dict[str, str]):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self, path: str, body: Any) -> tuple[Any, dict[str, str]]:
        """Returns the answer (bytes, or something for JSON) and its headers."""
        name, given = self.find_route(path)
        hub = self.server.hub
        may_write = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if not may_write and name not in ("store", "info", "tree", "resolve"):
            raise _Refusal(401, "Invalid username or password.")

        if "repo" in given:
            given["repo_id"] = given["repo"]
            given["repo"] = hub.repos.get(given["repo_id"])
            if given["repo"] is None or (given["repo"].private and not may_write):
                status = 404 if may_write else 401
                raise _Refusal(status, "Repository not found", "RepoNotFound")
        if "revision" in given and name != "branch":
            given["commit"] = given["repo"].commit(given["revision"])
            if given["commit"] is None:
                raise _Refusal(404, f"Invalid rev id: {given['revision']}", "RevisionNotFound")

        result = getattr(self, f"on_{name}")(body, **given)
        return result if isinstance(result, tuple) else (result, {})

    def find_route(self, path: str) -> tuple[str, dict[str, Any]]:
        """Returns the name of the handler and the parts of the path by name."""
        for methods, pattern, name in self._ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                parts = match.groupdict(default="main")
                return name, {key: unquote(value) for key, value in parts.items()}
        raise _Refusal(404, f"{self.command} {path} is nothing that this Hub knows")

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
        files = {".gitattributes": File(GIT_ATTRIBUTES, False)}
        first = self.commit_of(repo_id, "initial commit", files)
        hub.repos[repo_id] = Repo(private, {"main": [first]})
        return {"url": f"{hub.url}/{repo_id}", "name": repo_id}

    def on_branch(self, body, repo, repo_id, revision):
        if revision in repo.branches:
            raise _Refusal(409, f"Reference already exists: {revision}")
        repo.branches[revision] = list(repo.branches["main"])
        return {}

    def on_preupload(self, body, repo, repo_id, revision, commit):
        def mode(file):
            is_binary = b"\0" in base64.b64decode(file["sample"])
            is_large = file["path"].endswith(".safetensors") or is_binary
            entry = {
                "path": file["path"],
                "uploadMode": "lfs" if is_large else "regular",
                "shouldIgnore": False,
            }
            known = commit.files.get(file["path"])
            return entry | {"oid": known.oid} if known else entry

        return {"files": [mode(file) for file in body["files"]], "commitOid": commit.oid}

    def on_batch(self, body, repo, repo_id):
        hub = self.server.hub

        def entry(wanted):
            if wanted["oid"] in hub.blobs:
                return wanted
            actions = {
                "upload": {"href": f"{hub.url}/storage/{wanted['oid']}"},
                "verify": {"href": f"{hub.url}/{repo_id}.git/info/lfs/verify"},
            }
            return wanted | {"actions": actions}

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
        hub = self.server.hub
        files = dict(commit.files)
        summary = ""
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
        oids = {name: file.oid for name, file in sorted(files.items())}
        content = json.dumps([repo_id, parent, summary, oids])
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
            entry = {"type": "file", "path": name, "size": size, "oid": file.oid[:40]}
            if file.lfs:
                entry["lfs"] = {"oid": file.oid, "size": size, "pointerSize": 134}
            return entry

        return [entry(name, file) for name, file in sorted(commit.files.items())]

    def on_resolve(self, body, repo, repo_id, revision, commit, name):
        file = commit.files.get(name)
        if file is None:
            raise _Refusal(404, "Entry not found", "EntryNotFound")
        return file.content, {
            "ETag": f'"{file.oid}"',
            "X-Repo-Commit": commit.oid,
            "Accept-Ranges": "none",
            "Content-Type": "application/octet-stream",
        }
