"""A web server of a folder's files. A test can make its connections drop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Server:
    """What the server does.

    Attributes:
        address: where it listens.
        lasts: bytes after which each coming download drops. Without an entry a download is whole.
        offsets: where the downloads began.
        ranges: whether a download may begin inside a file.
    """

    folder: Path
    address: str = ""
    lasts: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    ranges: bool = True


class Handler(BaseHTTPRequestHandler):
    """Answers HEAD and GET, and GET of the rest of a file."""

    server_state: Server

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        """Send the headers."""
        self._head(0)

    def do_GET(self) -> None:
        """Send a file, and drop the connection where the test wants it."""
        state = self.server_state
        offset = int(self.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-")) if state.ranges else 0
        content = self._head(offset)
        if content is None:
            return
        state.offsets.append(offset)
        last = state.lasts.pop(0) if state.lasts else len(content)
        self.wfile.write(content[:last])
        self.close_connection = True

    def _head(self, offset: int) -> bytes | None:
        path = self.server_state.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return None
        content = path.read_bytes()[offset:]
        if offset and not content:
            # servers with ranges answer this where nothing is left to send
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{path.stat().st_size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(206 if offset else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server of the files of a folder while the context lasts."""
    state = Server(folder)
    handler = type("OwnHandler", (Handler,), {"server_state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
