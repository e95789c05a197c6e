"""Shards of JSON lines behind an address of the web, read while they are downloaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from apt_ds.config.errors import UserError
from apt_ds.data.stream_shards import LineShard

_ADDRESS = re.compile(r"https?://.+\.jsonl", re.IGNORECASE)
_SECONDS = 60  # without a byte, after which a connection counts as dropped
_BUSY = (408, 429)  # answers of a server that may soon give another
_BLOCK = 1 << 20  # bytes that are passed over at once


def is_address(name: str) -> bool:
    """Whether a name is the address of a file of JSON lines."""
    return bool(_ADDRESS.fullmatch(name))


class AddressShard(LineShard):
    """JSON lines behind an address. A dropped connection is an error that reading goes on after."""

    retried = (OSError, HTTPException)

    def lines(self, offset: int) -> Iterator[bytes]:
        """The lines from a place in bytes on.

        Raises:
            UserError: the server refuses the address.
            OSError: the connection was dropped.
        """
        response = self._open({"Range": f"bytes={offset}-"} if offset else {})
        if response is None:
            return
        with response:
            if offset and response.status != 206:
                _pass_over(response, offset)  # the server knows no ranges
            left = response.length
            for line in response:
                left = None if left is None else left - len(line)
                if left and not line.endswith(b"\n"):
                    break
                yield line
            if left:
                raise ConnectionError(f"closed {left} bytes before the end")

    def facts(self) -> str:
        """What tells one content of the address from another, as far as the server says. Raises UserError."""
        try:
            response = self._open({}, "HEAD")
            assert response is not None
            with response:
                headers = [response.headers.get(name, "") for name in ("Content-Length", "ETag", "Last-Modified")]
        except self.retried as error:
            raise UserError(f"{self.label} cannot be read: {error}") from error
        return hashlib.sha256("\0".join([self.label, *headers]).encode()).hexdigest()

    def _open(self, headers: dict[str, str], method: str = "GET") -> HTTPResponse | None:
        """The answer of the server. None: the range begins where the content ends."""
        request = Request(self.label, headers={"Accept-Encoding": "identity", **headers}, method=method)
        try:
            response = urlopen(request, timeout=_SECONDS)
        except HTTPError as error:
            offset = headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
            at_end = error.headers.get("Content-Range", "").endswith(f"*/{offset}")
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and at_end:
                return None
            if error.code < 500 and error.code not in _BUSY:
                raise UserError(f"{self.label} cannot be read: {error.code} {error.reason}") from error
            raise
        assert isinstance(response, HTTPResponse)
        return response


def _pass_over(response: HTTPResponse, count: int) -> None:
    """Read and drop bytes."""
    while count:
        block = response.read(min(count, _BLOCK))
        if not block:
            raise ConnectionError("closed before the place to go on from")
        count -= len(block)
