"""Rows of SQuAD and tokens of plain text in folders of the cache, from which later starts read them.

A question has any number of rows, and plain text has none before it is cut into blocks. So neither fits the folders of
`prepared.py`, which hold a row for each example.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.data import cache, plain_text
from apt_ds.data.arrow_files import rows_of, write_columns
from apt_ds.data.cache import CacheSettings
from apt_ds.data.plain_text import TokenBlocks
from apt_ds.data.prepared import SMALL_BYTES, cached, collected_warnings
from apt_ds.data.readers import find_source
from apt_ds.data.source_kind import text_files
from apt_ds.data.text_slices import text_part
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.data.tokenizer_identity import tokenizer_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = "tokens.int32"


@dataclass(frozen=True)
class Kept:
    """A folder of the cache.

    Attributes:
        folder: the path of the folder.
        temporary: the folder is outside the cache, and to be removed once all processes of the node have opened it.
    """

    folder: Path
    temporary: bool = False

    def remove_temporary(self) -> None:
        """Remove a temporary folder, whose files stay mapped."""
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def kept(facts: Sequence[Any], settings: CacheSettings, fill: Callable[[Path], dict[str, Any]]) -> Kept:
    """The folder for facts that JSON can write. `fill` writes its files if there is none.

    Raises:
        UserError: the disk is full, or what `fill` raises.
    """
    root, key = settings.root(), cache.key_of(*facts)
    folder = root / key
    again = settings.overwrite or folder.is_dir()
    if not settings.overwrite and cached(folder, lambda: cache.read_meta(folder)) is not None:
        return Kept(folder)
    with collected_warnings() as notices:
        folder = cache.write_entry(root, key, lambda partial: fill(partial) | {"notices": notices}, again)
    return Kept(folder, cache.is_temporary(folder, root))


def kept_rows(facts: Sequence[Any], settings: CacheSettings, make: Callable[[], TokenizedSet]) -> Kept:
    """The folder with the rows that `make` makes. See `kept`, and `opened_rows`."""

    def fill(folder: Path) -> dict[str, Any]:
        rows = make()
        write_columns(folder, rows.columns)
        return {"rows": len(rows), "dropped": rows.dropped, "fingerprint": rows.fingerprint}

    return kept(facts, settings, fill)


def opened_rows(folder: Path) -> TokenizedSet:
    """The rows in a folder that `kept_rows` made, in memory-mapped files."""
    meta = json.loads((folder / cache.META).read_text("utf-8"))
    return TokenizedSet(rows_of(folder), meta["dropped"], meta["fingerprint"])


def kept_tokens(name: str, flag: str, tokenizer: PreTrainedTokenizerBase, settings: CacheSettings) -> Kept:
    """The folder with the tokens of plain text, in the file `TOKENS`. Small texts have a temporary one.

    Args:
        name: the source, as `plain_text.documents` takes it.
        flag: the option that named it, for messages.
        tokenizer: makes the tokens.
        settings: where the cache is.

    Raises:
        UserError: the source cannot be read or has no text, or the tokens cannot be written.
    """

    def fill(folder: Path) -> dict[str, Any]:
        pieces = plain_text.token_pieces(plain_text.documents(name, flag), tokenizer)
        return {"tokens": plain_text.write_tokens(pieces, folder / TOKENS, name)}

    plain_text.check_end_token(tokenizer)
    source = TextSource(name, flag)
    if source.is_small():
        folder = Path(tempfile.mkdtemp(prefix="apt_ds_tokens_"))
        try:
            fill(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Kept(folder, temporary=True)
    return kept(["plain text", source.identity(), tokenizer_identity(tokenizer)], settings, fill)


def blocks_of(folder: Path, length: int, bos_id: int | None, fingerprint: str = "") -> TokenBlocks:
    """Blocks of the tokens in a folder that `kept_tokens` made.

    fingerprint: that of the blocks where it is known. Otherwise it is read from the folder, or computed and kept there.
    """
    ids = np.memmap(folder / TOKENS, np.int32, "r")
    file = folder / f"fingerprint-{length}-{bos_id}"
    if not fingerprint and file.is_file() and len(written := file.read_text("utf-8", errors="replace")) == 64:
        fingerprint = written
    blocks = TokenBlocks(ids, length, bos_id, fingerprint)
    if not fingerprint:
        cache.remember(file, blocks.fingerprint)
    return blocks


def _blocks(path: Path, flag: str) -> Iterator[bytes]:
    """The bytes of a file. Raises UserError."""
    try:
        with path.open("rb") as content:
            while block := content.read(1 << 20):
                yield block
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be read: {error.strerror}") from error


class TextSource:
    """A source of plain text: text files, a slice of one, or records with a column `text`.

    flag: the option that named it, for messages.
    """

    def __init__(self, name: str, flag: str) -> None:
        self.flag, self.part = flag, text_part(name, flag)
        self.files = text_files(self.part.path)
        self.records = None if self.files else find_source(name, ("train",))

    def is_small(self) -> bool:
        """Whether the cache would take longer than the tokens."""
        if self.records is not None:
            return 0 < self.records.bytes() <= SMALL_BYTES
        return sum(path.stat().st_size for path in self.files) <= SMALL_BYTES

    def identity(self) -> str:
        """A hash of the texts."""
        if self.records is not None:
            return self.records.identity()
        hasher = hashlib.sha256(f"{self.part.start}:{self.part.end}\0".encode())
        for path in self.files:
            hasher.update(f"{path.stat().st_size}\0".encode())
            for block in _blocks(path, self.flag):
                hasher.update(block)
        return hasher.hexdigest()
