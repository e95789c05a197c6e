"""Documents as blocks in which every token is trained."""

from __future__ import annotations

import json
import logging
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import plain_text
from apt_ds.data.plain_text import TokenBlocks, documents, token_pieces, write_tokens
from tests.support import tiny

END = 2  # the tokenizer's end token


def ids_of(texts: list[list[str]]) -> list[int]:
    return np.concatenate(list(token_pieces(texts, tiny.tokenizer()))).tolist()


def test_documents_are_joined_by_the_end_token() -> None:
    one, two = (tiny.tokenizer()(text)["input_ids"] for text in ("the cat", "a dog"))
    assert ids_of([["the cat"], [""], [" \n"], ["a dog"]]) == [*one, END, *two, END]


def test_pieces_of_a_long_document_are_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(tiny.WORDS * 30) + "\n\n" + "\n".join(tiny.WORDS * 10)
    whole = ids_of([[text]])
    monkeypatch.setattr(plain_text, "PIECE", 64)
    assert ids_of([[text]]) == ids_of([[text[:1000], text[1000:1001], text[1001:]]]) == whole
    pieces = list(plain_text.pieces_of([text]))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 64 and len(pieces) > 20
    # without a blank a piece ends where it must
    assert [len(piece) for piece in plain_text.pieces_of(["x" * 150])] == [64, 64, 22]


@pytest.mark.parametrize("bos_id", [None, 1])
@pytest.mark.parametrize("count", [2, 7, 8, 9, 10, 14, 64])
def test_blocks_hold_every_token_once_and_train_it(count: int, bos_id: int | None) -> None:
    ids = np.arange(10, 10 + count, dtype=np.int32)
    blocks = TokenBlocks(ids, 8, bos_id)
    rows = [blocks[i] for i in range(len(blocks))]
    assert all(row["input_ids"] == row["labels"] for row in rows)
    assert [len(row["input_ids"]) for row in rows] == blocks.lengths.tolist()
    assert all(length == 8 for length in blocks.lengths[:-1]) and 2 <= blocks.lengths[-1] <= 8
    text = [row["input_ids"][bos_id is not None :] for row in rows]
    assert bos_id is None or all(row["input_ids"][0] == bos_id for row in rows)
    # a single token at the end has nothing to be predicted from
    left_out = bos_id is None and count % 8 == 1
    assert list(chain(*text)) == ids[: count - left_out].tolist()
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_the_fingerprint_knows_tokens_and_length() -> None:
    ids = np.arange(50, dtype=np.int32)
    sets = [TokenBlocks(ids, 8, None), TokenBlocks(ids, 9, None), TokenBlocks(ids, 8, 1), TokenBlocks(ids + 1, 8, None)]
    assert len({blocks.fingerprint for blocks in sets}) == 4
    assert TokenBlocks(ids.astype(np.int64), 8, None).fingerprint == sets[0].fingerprint


def test_a_text_file_is_one_document_and_so_is_each_record(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo")
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    assert ["".join(text) for text in documents(str(tmp_path / "wiki.txt"), "--data_path")] == ["one\n\ntwo"]
    assert ["".join(text) for text in documents(str(tmp_path / "rows.jsonl"), "--data_path")] == ["one", "", "two"]


def test_records_of_text_warn_of_the_columns_that_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "one"}, {"text": "two", "answer": "three", "note": ""}, {"text": "four", "answer": "five"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with caplog.at_level(logging.WARNING):
        assert len([*documents(str(path), "--data_path")]) == 3
    assert caplog.messages == [f"{path}: not used: 'answer' (first in {path}, line 2)"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": null}', "a.jsonl, line 2: 'text' must be text, not null"),
        ("a.json", json.dumps([{"text": 3}]), "a.json, record 1: 'text' must be text, not int"),
        ("a.txt", "", "a.txt holds no text. Give a source with at least one document"),
        ("a.txt", " \n ", "a.txt holds no text"),
    ],
)
def test_bad_text_is_one_line(name: str, content: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        write_tokens(token_pieces(documents(str(path), "--data_path"), tiny.tokenizer()), tmp_path / "ids", str(path))
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no end token to separate texts"):
        list(token_pieces([["one"]], tokenizer))


def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(UserError, match=r"the tokens of wiki.txt cannot be written to /dev .*No space left"):
        write_tokens([np.zeros(1 << 20, np.int32)], Path("/dev/full"), "wiki.txt")
