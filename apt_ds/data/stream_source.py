"""The sources of a stream: their shards, what they hold, and what tells one source from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import example_source
from apt_ds.data.readers import check_columns, load_hub
from apt_ds.data.source_kind import has_plain_text, text_files
from apt_ds.data.stream_address import AddressShard, is_address
from apt_ds.data.stream_part import Retries, Start, StreamPart
from apt_ds.data.stream_shards import HubShard, Shard, columns_of_record, shard_of_file
from apt_ds.data.text_slices import text_part

_EDGE = 1 << 16  # bytes of both ends of a file that tell it from another


@dataclass(frozen=True)
class StreamSource:
    """A source that is read while training.

    Attributes:
        name: as the user gave it.
        make: makes shards that no other part reads with.
        plain_text: whether it holds plain text. Otherwise it holds conversations.
        identity: a hash of names and sizes, and of a part of the content.
    """

    name: str
    make: Callable[[], list[Shard]]
    plain_text: bool
    identity: str

    def part(
        self, rank: int = 0, world: int = 1, start: Start | None = None, retries: Retries | None = None
    ) -> StreamPart:
        """The part of process `rank` of `world`, see `StreamPart`."""
        return StreamPart(self.name, self.make(), rank, world, start, retries)


def stream_source(name: str, retries: Retries | None = None) -> StreamSource:
    """Find a source and read its first record.

    Args:
        name: a file, a folder, a hub data set, or the address of a file of JSON lines.
        retries: how to go on after an error.

    Raises:
        UserError: there is no such source, or it holds no record.
    """
    make, identity = _found(name)
    first = StreamPart(name, make(), retries=retries).read(1)
    if not first:
        raise UserError(f"{name} holds no records. Give a source with at least one")
    where, record = first[0]
    return StreamSource(name, make, has_plain_text(columns_of_record(record, where)), identity)


def _found(name: str) -> tuple[Callable[[], list[Shard]], str]:
    """How to make the shards of a source, and its identity."""
    if not text_part(name).whole:
        raise UserError(f"{name}: --streaming does not support a slice, as it reads a file once. Give the whole file")
    if is_address(name):
        return (lambda: [AddressShard(name)]), AddressShard(name).facts()
    files = tuple(text_files(Path(name)))
    if not files:
        files = example_source(name).files
        check_columns(files)
    if files:
        return (lambda: [shard_of_file(file) for file in files]), _identity_of_files(files)
    stream = load_hub(name, "train", streaming=True)
    count = stream.num_shards

    def shard(index: int) -> Shard:
        return HubShard(name, lambda: stream.shard(count, index))

    def make() -> list[Shard]:
        return [shard(index) for index in range(count)]

    return make, hashlib.sha256(json.dumps([name, count, str(stream.info.download_checksums)]).encode()).hexdigest()


def _identity_of_files(files: tuple[Path, ...]) -> str:
    """A hash of names, sizes, and both ends of the files."""
    hasher = hashlib.sha256()
    for path in files:
        try:
            size = path.stat().st_size
            hasher.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                hasher.update(file.read(_EDGE))
                file.seek(max(0, size - _EDGE))
                hasher.update(file.read(_EDGE))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return hasher.hexdigest()
