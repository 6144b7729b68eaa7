"""A stand-in for the Hub: answers a client of `huggingface_hub` about datasets from memory."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers with dataset info, the list of a folder, and files."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        path = path.removeprefix("/api").removeprefix("/datasets/")
        repo = "/".join(path.split("/")[:2])
        files = self.server.repositories.get(repo)
        if files is None:
            return self.send(b"{}", body, status=404)
        if "/resolve/" in path:
            return self.send(files[path.split("/resolve/")[1].split("/", 1)[1]], body)
        if "/tree/" not in path:
            return self.send(json.dumps({"id": repo, "sha": REVISION}).encode(), body)

        folder = path.split(f"/tree/{REVISION}")[1].strip("/")
        prefix = f"{folder}/" if folder else ""
        listed = [
            {"type": "file", "oid": "0", "size": len(content), "path": name}
            for name, content in files.items()
            if name.startswith(prefix)
        ]
        return self.send(json.dumps(listed).encode(), body)

    def send(self, content, body, status=200):
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextlib.contextmanager
def serve(repositories):
    """Serve "OWNER/NAME" → file name → content; yields the address for HF_ENDPOINT."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.repositories = repositories
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
