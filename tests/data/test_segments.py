"""Rows of segments: many at once are what each is alone, and no token spans a border."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken

from apt_ds.data.segments import SegmentTokenizer, splitting_tokens
from apt_ds.data.tokenized import IGNORED
from tests.support import golden_rows, tiny

TOKENIZERS = ("chatml", "chatml, merging", "mistral", "none, merging")


def drawn(draw: random.Random) -> list[tuple[str, bool]]:
    """Texts with special tokens anywhere, also at and across borders, and empty ones."""
    pieces = []
    for number in range(draw.randint(1, 5)):
        parts = [
            "<|im_start|>",
            "<|im_end|>",
            "</s>",
            "<unk>",
            "\n",
            " ",
            "<|im_",
            "[INST]",
            "",
            golden_rows.words(draw, 3),
        ]
        pieces.append(("".join(draw.choice(parts) for _ in range(draw.randint(0, 5))), number % 2 == 1))
    return pieces


@pytest.mark.parametrize("name", TOKENIZERS)
def test_many_rows_are_what_each_is_when_tokenized_border_by_border(name: str) -> None:
    draw, tokenizer = random.Random(5), golden_rows.TOKENIZERS[name]()
    rows = [drawn(draw) for _ in range(150)]
    segments = SegmentTokenizer(tokenizer, [1])
    alone = [segments._one_by_one(row) for row in rows]
    assert segments(rows) == alone
    assert [segments([row])[0] for row in rows] == alone
    assert segments.splitting and all(len(ids) == len(labels) for ids, labels in alone)


def test_equal_parts_are_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = SegmentTokenizer(golden_rows.TOKENIZERS["chatml"]())
    asked: list[str] = []
    plain = segments._plain
    monkeypatch.setattr(segments, "_plain", lambda texts: asked.extend(texts) or plain(texts))
    question = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    rows = [[(question, False), (f"sees {number}<|im_end|>", True)] for number in range(9)]
    labelled = segments(rows)
    assert sorted(asked) == sorted(set(asked)) and len(asked) == 9 + 4
    assert all(labels.count(IGNORED) == len(plain([question])[0]) for _, labels in labelled)


def test_a_tokenizer_without_added_tokens_splits_nowhere() -> None:
    assert splitting_tokens(tiny.tokenizer()) <= {"<pad>", "<unk>", "<s>", "</s>"}
    rows = [[("the cat", False), ("sees", True)], [("", False), ("", True)], [("", True)]]
    labelled = SegmentTokenizer(tiny.tokenizer())(rows)
    assert labelled[1:] == [([], []), ([], [])] and labelled[0][1][:2] == [IGNORED, IGNORED]


def test_tokens_that_overlap_or_take_blanks_do_not_split() -> None:
    tokenizer = golden_rows.TOKENIZERS["chatml"]()
    given = [
        AddedToken("<<x>>", normalized=False),
        AddedToken("<<x>>y", normalized=False),
        AddedToken("{{a", normalized=False),
        AddedToken("a}}", normalized=False),
        AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<form>", normalized=True),
        AddedToken("<alone>", normalized=False),
    ]
    tokenizer.add_tokens(given)
    # of two tokens that begin alike, the longer one is found
    assert splitting_tokens(tokenizer) & {str(token) for token in given} == {"<alone>", "<<x>>y"}
    draw, segments = random.Random(2), SegmentTokenizer(tokenizer)
    texts = [str(token) for token in given] + ["y", " ", "a}", "{{a}}", "cat"]
    rows = [[("".join(draw.choices(texts, k=4)), False), ("".join(draw.choices(texts, k=3)), True)] for _ in range(200)]
    assert segments(rows) == [segments._one_by_one(row) for row in rows] and {"<alone>", "<<x>>y"} <= segments.splitting
