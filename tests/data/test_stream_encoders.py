"""Rows of records as they come: those of the ordinary reader, with broken records left out and counted."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import load_examples
from apt_ds.data.formats import Located
from apt_ds.data.instructions import encode_many, instruction_recipe, is_trained
from apt_ds.data.plain_text import TokenBlocks, token_pieces
from apt_ds.data.source_kind import LAST_PIECE
from apt_ds.data.stream_encoders import ConversationEncoder, TextEncoder
from tests.support import tiny


def records(tmp_path: Path, count: int) -> list[Located]:
    listed = json.loads(tiny.save_data(tmp_path / "data.json", count).read_text())
    return [(f"a.jsonl, line {i}", record) for i, record in enumerate(listed, start=1)]


def encoder(length: int = 40) -> ConversationEncoder:
    return ConversationEncoder("a.jsonl", instruction_recipe(tiny.tokenizer(), length))


def test_rows_are_those_of_the_ordinary_reader(tmp_path: Path) -> None:
    located, row_encoder = records(tmp_path, 100), encoder(24)
    rows = [row for start in range(0, 100, 7) for row in row_encoder.encode(located[start : start + 7])]
    wanted = encode_many(load_examples(tmp_path / "data.json"), tiny.tokenizer(), 24)
    assert [{k: v.tolist() for k, v in row.items()} for row in rows] == [row for row in wanted if is_trained(row)]
    assert row_encoder.dropped == sum(not is_trained(row) for row in wanted) > 0
    assert all(values.dtype == np.int32 for row in rows for values in row.values())


def test_few_broken_records_are_left_out_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row_encoder, located = encoder(), records(tmp_path, 300) * 4
    located[5] = ("a.jsonl, line 6", {"instruction": "the cat", "output": ""})
    located[20] = ("a.jsonl, line 21", {**located[20][1], "more": 1})
    with caplog.at_level(logging.WARNING):
        rows = [row for start in range(0, 1200, 64) for row in row_encoder.encode(located[start : start + 64])]
        row_encoder.end_pass()
    assert len(rows) == 1199 - row_encoder.dropped
    assert [message.split(" (")[0] for message in caplog.messages] == [
        "a.jsonl: not used: 'more'",
        "a.jsonl: left out 1 records so far. a.jsonl, line 6: the output is empty",
    ]
    again = encoder()
    again.load(json.loads(json.dumps(row_encoder.state())))
    assert again.counts == row_encoder.counts


def test_many_broken_records_are_an_error(tmp_path: Path) -> None:
    broken = encoder()
    broken.encode([("a.jsonl, line 1", {"instruction": "the", "output": ""}), *records(tmp_path, 9)])
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: the output is empty\. Mend or remove the record"):
        broken.end_pass()
    with pytest.raises(UserError, match="line 7: the instruction is empty"):
        encoder().encode([("a.jsonl, line 7", {"instruction": "", "output": "x"})])


def test_a_length_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    short = encoder(3)
    assert short.encode(records(tmp_path, 9)) == [] and short.dropped == 9
    with pytest.raises(UserError, match="--max_seq_length cuts off every answer"):
        short.end_pass()


@pytest.mark.parametrize("bos", [None, 1])
def test_text_becomes_the_blocks_of_the_ordinary_reader(bos: int | None) -> None:
    tokenizer = tiny.tokenizer()
    texts = [" ".join(tiny.WORDS[n % 9 :] * (n % 4)) for n in range(50)]
    ids = np.concatenate(list(token_pieces([(text,) for text in texts], tokenizer)))
    wanted, text_encoder = TokenBlocks(ids, 16, bos), TextEncoder("a", tokenizer, 16, bos)
    located = [(f"row {n}", {"text": text}) for n, text in enumerate(texts)]
    rows = []
    for start in range(0, 50, 3):
        state = json.loads(json.dumps(text_encoder.state()))
        text_encoder = TextEncoder("a", tokenizer, 16, bos)
        text_encoder.load(state)
        rows += text_encoder.encode(located[start : start + 3])
    whole = len(ids) // wanted.text_tokens
    assert [row["input_ids"].tolist() for row in rows] == [wanted[i]["input_ids"] for i in range(whole)]
    assert text_encoder.rest.tolist() == ids[whole * wanted.text_tokens :].tolist()
    assert all(row["labels"].tolist() == row["input_ids"].tolist() for row in rows)


def test_columns_beside_a_text_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    warned: set[str] = set()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            text_encoder = TextEncoder("a.jsonl", tiny.tokenizer(), 16, None, warned)
            text_encoder.encode(
                [("a.jsonl, line 1", {"text": "the cat", LAST_PIECE: True}), ("b", {"text": "sees", "more": 1})]
            )
            text_encoder.encode([("a.jsonl, line 3", {"text": "the cat", "more": 2})])
    assert caplog.messages == ["a.jsonl: not used: 'more' (first in b)"]


def test_a_column_of_the_user_called_last_is_no_mark(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny.tokenizer()
    text_encoder = TextEncoder("a.jsonl", tokenizer, 1000, None)
    with caplog.at_level(logging.WARNING):
        text_encoder.encode(
            [("a.jsonl, line 1", {"text": "the cat", "last": 0}), ("b", {"text": "sees", "last": "Smith"})]
        )
    assert text_encoder.rest.tolist().count(tokenizer.eos_token_id) == 2
    assert caplog.messages == ["a.jsonl: not used: 'last' (first in a.jsonl, line 1)"]


def test_the_end_token_follows_the_last_piece_alone() -> None:
    tokenizer = tiny.tokenizer()
    text_encoder = TextEncoder("a", tokenizer, 1000, None)
    text_encoder.encode([("a", {"text": "the cat ", LAST_PIECE: False}), ("b", {"text": "sees", LAST_PIECE: True})])
    assert (
        text_encoder.rest.tolist().count(tokenizer.eos_token_id)
        == 1
        == (text_encoder.rest[-1] == tokenizer.eos_token_id)
    )
    with pytest.raises(UserError, match="has fewer than 1000 tokens"):
        text_encoder.end_pass()
    with pytest.raises(UserError, match="c: 'text' must be text, not int"):
        text_encoder.encode([("c", {"text": 3})])
