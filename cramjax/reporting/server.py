"""Serves a page that follows its runs, on the loopback address, and only reads."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import pathlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from cramjax.console import announce
from cramjax.errors import UserError
from cramjax.reporting import page, reading, subjects

HOST = "127.0.0.1"
FOLLOW_S = 3.0
"""Seconds between two questions of the page for news."""

REST = 10.0
"""A page is made again after this many times the seconds that making it took."""

_LOCAL = (HOST, "localhost")


class Source:
    """The page of some paths as it is now.

    It is made again when a file has changed, and not before it has rested: a page of many long runs
    takes a second of a processor that the run itself may need.
    """

    def __init__(self, paths: Sequence[pathlib.Path], price: float | None):
        """Raises UserError for a path that is nothing."""
        self._paths = list(paths)
        self._price = price
        self._lock = threading.Lock()
        self._found = subjects.find(self._paths)
        self._stamp: Any = None
        self._page: page.Page | None = None
        self._data = b""
        self._rests_until_s = 0.0

    def html(self) -> bytes:
        """Returns the page as it is now."""
        with self._lock:
            return page.render(self._now(), follow_s=FOLLOW_S).encode()

    def data(self) -> tuple[bytes, str]:
        """Returns the data of the page as it is now, and a tag that changes with them."""
        with self._lock:
            self._now()
            return self._data, f'"{hashlib.sha256(repr(self._stamp).encode()).hexdigest()[:32]}"'

    def _now(self) -> page.Page:
        found = self._find()
        stamp = reading.stamp(found.files())
        begun_s = time.monotonic()
        has_rested = begun_s >= self._rests_until_s
        if self._page is None or (stamp != self._stamp and has_rested):
            self._page = page.make(found, price=self._price)
            self._data = page.data(self._page, follow_s=FOLLOW_S).encode()
            self._stamp = stamp
            now_s = time.monotonic()
            self._rests_until_s = now_s + REST * (now_s - begun_s)
        return self._page

    def _find(self) -> subjects.Subjects:
        # A sweep gets more runs meanwhile. A folder that is away for a moment was there before.
        with contextlib.suppress(UserError):
            self._found = subjects.find(self._paths)
        return self._found


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET for the page and its data, and nothing else."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def __init__(self, source: Source, *connection: Any):
        """Answer what comes over a connection."""
        self._source = source
        super().__init__(*connection)

    def handle(self) -> None:
        """Answer until the browser has gone away, be it in the middle of an answer."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """Answer one question."""
        # Another site's page can reach this port by a name that it points at 127.0.0.1.
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if host not in _LOCAL:
            self._answer(403, b"only for this machine\n", "text/plain")
        elif self.path in ("/", "/index.html"):
            self._answer(200, self._source.html(), "text/html; charset=utf-8")
        elif self.path == "/data.json":
            content, tag = self._source.data()
            if self.headers.get("If-None-Match") == tag:
                self._answer(304, b"", "application/json", tag)
            else:
                self._answer(200, content, "application/json", tag)
        else:
            self._answer(404, b"no such page\n", "text/plain")

    def _answer(self, status: int, content: bytes, kind: str, tag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a question every few seconds would fill the terminal."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, source: Source):
        super().__init__((HOST, port), functools.partial(_Handler, source))


def open_server(
    paths: Sequence[pathlib.Path], *, port: int, price: float | None = None
) -> http.server.ThreadingHTTPServer:
    """Returns a server of the page that is bound to its port and does not answer yet.

    Args:
        paths: what the page is about.
        port: of the loopback address; 0 takes a free one.
        price: of an hour of each run.

    Raises:
        UserError: for a path that is nothing, or a port that cannot be had.
    """
    source = Source(paths, price)
    try:
        return _Server(port, source)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no such port"
        raise UserError(
            f"--serve {port}: {reason}; give another port, or 0 for a free one"
        ) from error


def serve(paths: Sequence[pathlib.Path], *, port: int, price: float | None) -> int:
    """Serve until a signal ends the command; see `open_server`."""
    with open_server(paths, port=port, price=price) as server:
        announce(f"http://{HOST}:{server.server_address[1]}/ shows it; Ctrl-C ends this")
        server.serve_forever(poll_interval=0.5)
    return 0
