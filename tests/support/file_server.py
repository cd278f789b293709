"""A small HTTP server on this machine that misbehaves as told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Files:
    """Content and behaviour of the server.

    Attributes:
        content: path to bytes.
        break_after: for each coming request, the bytes after which the connection is closed.
        ranges: heed Range (and If-Range).
        wrong_range: answer with a range that begins elsewhere.
        with_length: send Content-Length.
        status: for each coming request, an error to answer with.
        etag: of all files.
        redirect: an address to send every request to.
        requests: (path, Range header, bytes to send), in order.
    """

    content: dict[str, bytes]
    break_after: list[int] = field(default_factory=list)
    ranges: bool = True
    wrong_range: bool = False
    with_length: bool = True
    status: list[int] = field(default_factory=list)
    etag: str = '"first"'
    redirect: str = ""
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)


@contextmanager
def serve(files: Files) -> Iterator[str]:
    """Serve until the end of the block; gives the URL."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            if files.redirect:
                self.send_response(302)
                self.send_header("Location", files.redirect)
                self.end_headers()
                return
            if files.status or self.path not in files.content:
                files.requests.append((self.path, asked, 0))
                self.send_error(files.status.pop(0) if files.status else 404)
                return
            body, start = files.content[self.path], 0
            same = self.headers.get("If-Range") in (None, files.etag)
            if asked and files.ranges and same:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.send_header("Content-Length", "0")
                    files.requests.append((self.path, asked, 0))
                    self.end_headers()
                    return
                self.send_response(206)
                begins = start + files.wrong_range
                self.send_header("Content-Range", f"bytes {begins}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            self.send_header("ETag", files.etag)
            if files.with_length:
                self.send_header("Content-Length", str(len(body) - start))
            rest = body[start:]
            if files.break_after:
                rest = rest[: files.break_after.pop(0)]
            # Recorded before it is sent: afterwards the client may already look at the list.
            files.requests.append((self.path, asked, len(rest)))
            self.end_headers()
            self.wfile.write(rest)
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
