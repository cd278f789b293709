"""A stand-in for the Hugging Face Hub on this machine, for the real client."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The hub's content.

    Attributes:
        url: address of the server.
        token: the token that may write.
        files: content by repository and path.
        private: whether each repository was created as a private one.
        downloads: path of each download, in order.
    """

    url: str = ""
    token: str = "hf_test"
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve an empty hub until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.answer(b"{}", 401, X_Error_Message="Invalid credentials")
                return
            path = self.path.partition("?")[0]
            reply: dict[str, object] = {}
            if path == "/api/repos/create":
                asked = json.loads(content)
                name = f"{asked['organization']}/{asked['name']}"
                hub.files.setdefault(name, {})
                hub.private[name] = bool(
                    asked.get("private") or asked.get("visibility") == "private"
                )
                reply = {"url": f"{hub.url}/{name}"}
            elif path.startswith("/api/validate-yaml"):
                reply = {"errors": [], "warnings": []}
            elif found := re.fullmatch(r"/api/models/(.+/.+)/preupload/main", path):
                paths = [file["path"] for file in json.loads(content)["files"]]
                reply = {"files": [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in paths
                ]}  # fmt: skip
            elif found := re.fullmatch(r"/api/models/(.+/.+)/commit/main", path):
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        data = base64.b64decode(line["value"]["content"])
                        hub.files[found[1]][line["value"]["path"]] = data
                url = f"{hub.url}/{found[1]}/commit/{COMMIT}"
                reply = {"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""}
            self.answer(json.dumps(reply).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            found = re.fullmatch(r"/(.+?/.+?)/resolve/(.+?)/(.+)", self.path)
            if found is None:
                self.answer(b"{}", Content_Type="application/json")
                return
            repository, revision, path = found.groups()
            body = hub.files.get(repository, {}).get(path)
            if body is None or revision not in ("main", "v1", COMMIT):
                code = "EntryNotFound" if repository in hub.files else "RepoNotFound"
                self.answer(b"", 404, X_Error_Code=code)
                return
            if self.command == "GET":
                hub.downloads.append(path)
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            self.answer(body, ETag=etag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
