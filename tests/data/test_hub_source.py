"""The Hub source against a local HTTP server with the part of the Hub's API that it needs."""

import errno
import gzip
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from cramjax.data import hub_source

REVISION = "0123456789abcdef0123456789abcdef01234567"


def packed_part(number):
    """A file of 200 documents."""
    records = [{"text": f"document {number}-{line} " + "x" * 400} for line in range(200)]
    return gzip.compress("\n".join(map(json.dumps, records)).encode(), 1)


FILES = {f"en/part-{number}.json.gz": packed_part(number) for number in range(3)}
FILES |= {"README.md": b"a card", "en/notes.bin": b"no text"}
READER = """
import json, sys, types
import huggingface_hub.constants
from cramjax.errors import UserError
from cramjax.data import hub_source
from cramjax.data.sources import open_sources
hub_source.FIRST_PAUSE_S, hub_source.ATTEMPTS = 0.01, int(sys.argv[3])
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 100
data = types.SimpleNamespace(
    source=sys.argv[1], text_field="text", cache_dir=sys.argv[2], allow_build=False, keep=None,
    heldout=None, target_field=None,
)
try:
    (source,) = open_sources(data)
    parts = source.parts()
    texts = []
    for part in parts:
        texts += source.read(part, lambda *_: None)
    keys = [part.key for part in parts]
    result = {"revision": source.revision, "keys": keys, "n": len(texts), "last": texts[-1][:12]}
    print(json.dumps(result))
except UserError as error:
    sys.exit(str(error))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers with dataset info, and with files, whole or a range.

    The server's `script` and `download_script` hold the status codes that come first instead, one
    for each request; `break_once` names files whose first download breaks off.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        if not self.path.startswith(("/api/datasets/", "/datasets/")):
            return self.send(404, b"{}", {}, body)

        script = self.server.download_script if "/resolve/" in self.path else self.server.script
        trouble = script.pop(0) if script else None
        if isinstance(trouble, int):
            return self.send(trouble, b"{}", {"Retry-After": "0"}, body)

        if "/tree/" in self.path:
            return self.tree(body)
        if "/api/datasets/" in self.path:
            return self.send(200, json.dumps({"id": "a/b", "sha": REVISION}).encode(), {}, body)
        name = self.path.split("/resolve/")[1].split("/", 1)[1].split("?")[0]
        return self.file(name, body)

    def file(self, name, body):
        """Send a file, from the byte on that the request asks for."""
        content = FILES[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": REVISION,
            "Accept-Ranges": "bytes",
        }
        asked = self.headers.get("Range") or "bytes=0-"
        start = int(asked.removeprefix("bytes=").split("-")[0] or 0)
        status = 200
        if start:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"

        cut = None
        if body and name in self.server.break_once:
            self.server.break_once.remove(name)
            cut = len(content) // 2
        return self.send(status, content[start:], headers, body, cut=cut)

    def tree(self, body):
        """Send the list of a folder, two entries per page."""
        path, _, query = self.path.partition("?")
        folder = path.split(f"/tree/{REVISION}")[1].strip("/")
        prefix = f"{folder}/" if folder else ""
        names = [name for name in sorted(FILES) if name.startswith(prefix)]
        if not names:
            return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)

        page = int(query.split("page=")[1]) if "page=" in query else 0
        entries = []
        for name in names[2 * page : 2 * page + 2]:
            entries.append({"type": "file", "oid": "0", "size": len(FILES[name]), "path": name})
        headers = {}
        if names[2 * page + 2 :]:
            url = f"http://{self.headers['Host']}{path}?page={page + 1}"
            headers["Link"] = f'<{url}>; rel="next"'
        return self.send(200, json.dumps(entries).encode(), headers, body)

    def send(self, status, content, headers, body, cut=None):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()

        if body:
            self.wfile.write(content[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.requests = []
    server.script = []
    server.download_script = []
    server.break_once = set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def read(tmp_path, root, endpoint, source="hf:a/b:en/*.json.gz", attempts=3, **extra):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": str(root),
        **extra,
    }
    arguments = [sys.executable, "-c", READER, source, str(tmp_path / "cache"), str(attempts)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_matching_files_are_read_at_a_pinned_commit(hub, tmp_path, root):
    done = read(tmp_path, root, address(hub))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["revision"] == REVISION
    assert result["n"] == 600 and result["last"] == "document 2-1"
    assert result["keys"][0] == f"{REVISION}:en/part-0.json.gz"
    assert not any("README" in path or "notes" in path for _, path, _ in hub.requests)
    assert all(REVISION in path for _, path, _ in hub.requests if "/resolve/" in path)


def test_a_second_reading_needs_no_network(hub, tmp_path, root):
    first = read(tmp_path, root, address(hub))
    again = read(tmp_path, root, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and again.stdout == first.stdout, again.stderr


def test_a_dropped_connection_is_taken_up_where_it_broke(hub, tmp_path, root):
    hub.break_once = {"en/part-1.json.gz"}
    done = read(tmp_path, root, address(hub))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n"] == 600 and not hub.break_once
    ranges = [asked for _, path, asked in hub.requests if "part-1" in path and asked]
    half = len(FILES["en/part-1.json.gz"]) // 2
    assert ranges == [f"bytes={half - half % 100}-"]  # in whole chunks


def test_only_the_folder_of_the_pattern_is_listed(hub, tmp_path, root):
    assert read(tmp_path, root, address(hub)).returncode == 0
    trees = [path for _, path, _ in hub.requests if "/tree/" in path]
    assert len(trees) > 1 and all(f"/tree/{REVISION}/en" in path for path in trees)

    done = read(tmp_path, root, address(hub), source="hf:a/b:*.json.gz")
    assert done.returncode == 0 and json.loads(done.stdout)["n"] == 600


def test_trouble_while_downloading_is_waited_for(hub, tmp_path, root):
    hub.download_script = [503, 429]
    done = read(tmp_path, root, address(hub))
    assert done.returncode == 0 and json.loads(done.stdout)["n"] == 600, done.stderr


def test_a_download_that_never_comes_is_refused_with_the_alternatives(hub, tmp_path, root):
    hub.download_script = [503] * 500  # the library itself asks several times
    done = read(tmp_path, root, address(hub), attempts=1)
    assert done.returncode == 1, done.stderr
    assert "answered 503" in done.stderr and "installed-docs" in done.stderr, done.stderr

    hub.download_script = [404] * 2
    done = read(tmp_path, root, address(hub))
    assert done.returncode == 1
    assert "no such dataset or file" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_is_no_network_trouble(monkeypatch):
    attempts = []

    def full():
        attempts.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_source, "FIRST_PAUSE_S", 0.0)
    with pytest.raises(OSError, match="No space left"):
        hub_source.patiently(full, "hf:a/b")
    assert attempts == [1]


def test_a_busy_hub_is_asked_again(hub, tmp_path, root):
    hub.script = [429, 503]
    assert read(tmp_path, root, address(hub)).returncode == 0


@pytest.mark.parametrize(
    "status, part", [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "no such dataset")]
)
def test_a_refusal_is_one_sentence_with_what_to_do(hub, tmp_path, root, status, part):
    hub.script = [status] * 50
    done = read(tmp_path, root, address(hub))
    assert done.returncode == 1 and part in done.stderr and "Traceback" not in done.stderr


def test_no_network_names_the_alternatives(tmp_path, root):
    done = read(tmp_path, root, "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr and "installed-docs" in done.stderr

    done = read(tmp_path, root, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in done.stderr and "installed-docs" in done.stderr


def test_a_glob_without_match_is_refused(hub, tmp_path, root):
    done = read(tmp_path, root, address(hub), source="hf:a/b:fr/*.json.gz")
    assert done.returncode == 1 and "fr/*.json.gz" in done.stderr
    done = read(tmp_path, root, address(hub), source="hf:a--b/c:*.json.gz")
    assert done.returncode == 1 and "not a name" in done.stderr
