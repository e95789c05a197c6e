"""Plain text as blocks of tokens, every one of which is trained.

A .txt file is one document, and so is each row of a column `text`. The end token follows each document. All tokens in a
row are cut into blocks of equal length, with the beginning token first where the model's family begins with it. A block
may hold the end of one document and the start of the next.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import warn_unused
from apt_ds.data.readers import find_source, text_of
from apt_ds.data.source_kind import TEXT, text_files
from apt_ds.data.text_slices import text_part
from apt_ds.data.tokenized import Row
from apt_ds.data.turns import Unused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 1 << 16  # characters that are tokenized at once
AT_ONCE = 16  # pieces that the tokenizer gets at once

log = logging.getLogger(__name__)

Document = Iterable[str]  # a document in pieces


class TokenBlocks:
    """Blocks of one long row of tokens, see `rows.Rows`. All tokens are trained.

    Attributes:
        ids: tokens of all documents, int32 [tokens]. It may be a memory-mapped file.
        length: tokens of a block, the beginning token included. The last block may have fewer.
        bos_id: the token that begins each block. None without one.
        dropped: 0. Documents without text are no examples.
    """

    dropped = 0

    def __init__(self, ids: np.ndarray, length: int, bos_id: int | None, fingerprint: str = "") -> None:
        """Blocks of `ids`. fingerprint: that of earlier blocks of the same arguments, computed here if empty."""
        self.ids, self.length, self.bos_id = ids, length, bos_id
        self.text_tokens = length - (bos_id is not None)
        self.fingerprint = fingerprint or self._fingerprint()

    def __len__(self) -> int:
        return -(-len(self.ids) // self.text_tokens) - self._rest_is_short()

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.text_tokens
        ids = self.ids[start : start + self.text_tokens].tolist()
        ids = ids if self.bos_id is None else [self.bos_id, *ids]
        return {"input_ids": ids, "labels": list(ids)}

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each block, int64 [blocks]."""
        lengths = np.full(len(self), self.length, np.int64)
        if (rest := len(self.ids) % self.text_tokens) and not self._rest_is_short():
            lengths[-1] = rest + self.length - self.text_tokens
        return lengths

    def _rest_is_short(self) -> bool:
        """Whether the rest after whole blocks is a single token without a beginning token, which predicts nothing."""
        return self.bos_id is None and len(self.ids) % self.text_tokens == 1

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.length} {self.bos_id} {len(self.ids)};".encode())
        for start in range(0, len(self.ids), 1 << 20):
            digest.update(self.ids[start : start + (1 << 20)].astype(np.int32).tobytes())
        return digest.hexdigest()


def documents(name: str, flag: str) -> Iterator[Document]:
    """The documents of a source, each in pieces. After the last one it warns of columns that are not used.

    Args:
        name: a .txt file, a slice of one, or a folder of them. Or a file, a folder of shards or a hub data set with a
            column `text`.
        flag: the option that named it, for messages.

    Raises:
        UserError: the source cannot be read, or a text is not text. The message names file and record.
    """
    part = text_part(name, flag)
    if texts := text_files(part.path):
        for path in texts:
            yield part._replace(path=path).pieces(flag)
        return
    unused = Unused()
    for where, record in find_source(name, ("train",)).records():
        text = text_of(record, (TEXT,), where)
        unused.note(record, (TEXT,), where)
        yield (text,)
    warn_unused(unused, name)


def check_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where a tokenizer has no token that separates documents."""
    if tokenizer.eos_token_id is None:
        name = tokenizer.name_or_path or "the model"
        raise UserError(
            f"the tokenizer of {name} has no end token to separate texts. Set eos_token in its tokenizer_config.json"
        )


def token_pieces(texts: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """The tokens of all documents, each followed by the end token. Each array is int32 and of moderate size.

    A document of more than `PIECE` characters is tokenized in pieces, which end before a word where there is one.
    Documents without text are left out.
    """
    check_end_token(tokenizer)
    yield from encode_pieces(_marked_pieces(texts), tokenizer)


def encode_pieces(pieces: Iterable[tuple[str, bool]], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """The tokens of pieces, int32, with the end token after a piece that is the last of its document."""
    pieces = iter(pieces)
    while group := list(islice(pieces, AT_ONCE)):
        encoded = tokenizer([text for text, _ in group], add_special_tokens=False, verbose=False)["input_ids"]
        for ids, (_, last) in zip(encoded, group, strict=True):
            yield np.array([*ids, *([tokenizer.eos_token_id] if last else [])], np.int32)


def _marked_pieces(texts: Iterable[Document]) -> Iterator[tuple[str, bool]]:
    """Pieces of all documents, and whether a piece is the last of its document."""
    for document in texts:
        waiting, begun = "", False
        for piece in pieces_of(document):
            if waiting:
                yield waiting, False
                begun = True
            waiting = piece
        if begun or waiting.strip():
            yield waiting, True


def pieces_of(document: Document) -> Iterator[str]:
    """A document in pieces of at most `PIECE` characters."""
    buffer = ""
    for text in document:
        buffer += text
        start = 0
        while len(buffer) - start > PIECE:
            end = _last_border(buffer, start + PIECE // 2, start + PIECE) or start + PIECE
            yield buffer[start:end]
            start = end
        buffer = buffer[start:]
    if buffer:
        yield buffer


def _last_border(text: str, start: int, end: int) -> int:
    """The last place from `start` to `end` where a line begins, or else a word with its space. 0 if there is none."""
    place = end
    while (place := text.rfind("\n", start, place)) > 0:
        if not text[place + 1].isspace():
            return place + 1
    place = end
    while (place := text.rfind(" ", start, place)) > 0:
        if not text[place - 1].isspace() and not text[place + 1].isspace():
            return place
    return 0


def write_tokens(pieces: Iterable[np.ndarray], path: Path, source: str) -> int:
    """Write tokens to a file as `np.int32`. Returns their number.

    Raises:
        UserError: the file cannot be written, or the source has no text.
    """
    count = 0
    try:
        with path.open("wb") as file:
            for ids in pieces:
                file.write(ids.tobytes())
                count += len(ids)
    except OSError as error:
        raise UserError(
            f"the tokens of {source} cannot be written to {path.parent} ({error.strerror}). "
            "Free space, or set TMPDIR or --data_cache_dir"
        ) from error
    if count < 2:
        raise UserError(f"{source} holds no text. Give a source with at least one document")
    return count
