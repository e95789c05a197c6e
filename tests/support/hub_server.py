"""A stand-in for the Hugging Face hub: the part of its HTTP interface that an upload uses, in this process."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

USER, TOKEN, READ_TOKEN = "tester", "hf_right", "hf_read_only"
LARGE = 1000  # bytes from which a file goes through Git LFS


@dataclass
class Hub:
    """The content of the stand-in, and its requests.

    Attributes:
        address: where it listens.
        repositories: private or not, and files by path, of each repository.
        requests: method and path of every request, in order.
        large: contents of Git LFS objects by SHA-256.
        broken: requests whose path has this word are refused.
    """

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    broken: str = ""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub."""

    hub: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep quiet."""

    def answer(self, value: Any, status: int = 200) -> None:
        """Send JSON."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        """The content of the request."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def begin(self) -> tuple[str, bytes] | None:
        """The path and the content of a request that may be answered."""
        content, path = self.body(), unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if path.startswith("/lfs/"):  # an address that is signed instead
            return path, content
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_TOKEN):
            self.answer({"error": "Invalid credentials"}, 401)
        elif (self.hub.broken and self.hub.broken in path) or (token == READ_TOKEN and self.command == "POST"):
            self.answer({"error": "not allowed to write"}, 403)
        else:
            return path, content
        return None

    def do_GET(self) -> None:
        """Who owns the token, and the files of a repository."""
        if (begun := self.begin()) is None:
            return
        path, _ = begun
        name = path.removeprefix("/api/models/").split("/tree/")[0]
        if path == "/api/whoami-v2":
            self.answer({"type": "user", "name": USER, "orgs": []})
        elif name in self.hub.files and "/tree/" in path:
            listed = self.hub.files[name].items()
            self.answer([{"type": "file", "oid": git_id(c), "size": len(c), "path": p} for p, c in listed])
        elif name in self.hub.files:
            self.answer({"id": name, "sha": "0" * 40, "private": self.hub.private[name], "siblings": [], "tags": []})
        else:
            self.answer({"error": "Repository not found"}, 404)

    def do_PUT(self) -> None:
        """Take the content of a large file."""
        if (begun := self.begin()) is not None:
            path, content = begun
            identity = path.rpartition("/")[2]
            assert hashlib.sha256(content).hexdigest() == identity
            self.hub.large[identity] = content
            self.answer({})

    def do_POST(self) -> None:
        """Everything else."""
        if (begun := self.begin()) is None:
            return
        path, content = begun
        if path == "/api/repos/create":
            self.create(json.loads(content))
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(content))
        elif path == "/lfs-verify":
            value = json.loads(content)
            self.answer({}, 200 if len(self.hub.large[value["oid"]]) == value["size"] else 422)
        elif "/preupload/" in path:
            self.preupload(path, json.loads(content))
        elif "/commit/" in path:
            self.commit(path, [json.loads(line) for line in content.splitlines()])
        else:
            self.answer({"error": f"unknown path {path}"}, 404)

    def create(self, value: dict[str, Any]) -> None:
        """Make a repository."""
        name = f"{value.get('organization') or USER}/{value['name']}"
        status = 409 if name in self.hub.files else 200
        self.hub.files.setdefault(name, {})
        private = value.get("visibility") == "private" or bool(value.get("private"))
        self.hub.private.setdefault(name, private)
        self.answer({"url": f"{self.hub.address}/{name}", "name": name, "id": name}, status)

    def preupload(self, path: str, value: dict[str, Any]) -> None:
        """Say which files go through Git LFS."""
        there = self.hub.files[path.removeprefix("/api/models/").split("/preupload/")[0]]
        self.answer(
            {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["size"] > LARGE else "regular",
                        "shouldIgnore": False,
                        "oid": git_id(there[one["path"]]) if one["path"] in there else None,
                    }
                    for one in value["files"]
                ]
            }
        )

    def batch(self, value: dict[str, Any]) -> None:
        """Say where the contents of large files go."""
        self.answer(
            {
                "transfer": "basic",
                "objects": [
                    {
                        **one,
                        "actions": {
                            "upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"},
                            "verify": {"href": f"{self.hub.address}/lfs-verify"},
                        },
                    }
                    for one in value["objects"]
                ],
            }
        )

    def commit(self, path: str, lines: list[dict[str, Any]]) -> None:
        """Take files."""
        name = path.removeprefix("/api/models/").split("/commit/")[0]
        there = self.hub.files[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                there[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                there[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del there[value["path"]]
        identity = "1" * 40
        self.answer(
            {"success": True, "commitOid": identity, "commitUrl": f"{self.hub.address}/{name}/commit/{identity}"}
        )


def git_id(content: bytes) -> str:
    """The id that Git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A stand-in that listens on this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
