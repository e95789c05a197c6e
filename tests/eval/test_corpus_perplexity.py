"""Perplexity of a corpus against its definition, and what a user gets wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from apt_ds.config.errors import UserError
from apt_ds.eval import corpus_perplexity, loading
from tests.eval.commands import TEXT
from tests.support import tiny


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_is_that_of_its_definition(bos: bool, llamas: Path) -> None:
    loaded = loading.load(str(llamas / "dense"))
    figures = corpus_perplexity.evaluate(loaded, corpus_perplexity.Corpus(str(llamas / "text.txt")).text(), 32, bos, 3)
    ids = loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    own = 31 if bos else 32
    losses = []
    for start in range(0, len(ids) - own + 1, own):
        block = torch.tensor([([1] if bos else []) + ids[start : start + own]])
        with torch.no_grad():
            logits = loaded.model(block).logits
        losses += F.cross_entropy(logits[0, :-1], block[0, 1:], reduction="none").tolist()
    assert figures["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert (figures["tokens"], figures["blocks"]) == (len(losses), 230 // own)
    shown = corpus_perplexity.render(figures)
    assert f"{len(losses)} tokens predicted" in shown and ("begins with BOS" in shown) == bos


def test_a_corpus_may_be_a_slice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\nfour\n", encoding="utf8")
    assert corpus_perplexity.Corpus(f"{tmp_path / 'a.txt'}[50%:]").text() == "three\nfour\n"


def test_a_corpus_may_be_a_data_set(llamas: Path, tmp_path: Path) -> None:
    rows = [{"body": "the cat"}, {"body": "sees"}]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf8")
    source = corpus_perplexity.Corpus(str(tmp_path / "set"), column="body")
    assert source.text() == "the cat\n\nsees"
    with pytest.raises(UserError, match=r"--column 'text' is not in .*; it has body"):
        corpus_perplexity.Corpus(str(tmp_path / "set")).text()


def test_a_corpus_that_is_too_short_or_a_context_too_small_is_refused(llamas: Path) -> None:
    loaded = loading.load(str(llamas / "dense"))
    with pytest.raises(UserError, match="--block_length 256 is longer than the model's context of 128"):
        corpus_perplexity.evaluate(loaded, TEXT, 256, False, 1)
    with pytest.raises(UserError, match="holds 2 tokens, fewer than one block of 32"):
        corpus_perplexity.token_blocks("the cat", loaded.tokenizer, 32, source="x")


def test_blocks_start_with_bos_and_a_limit_spreads_them() -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    plain = corpus_perplexity.token_blocks(TEXT, tokenizer, 10, source="x")
    assert plain.flatten().tolist() == ids[: len(ids) // 10 * 10]
    with_bos = corpus_perplexity.token_blocks(TEXT, tokenizer, 10, source="x", bos=True)
    assert with_bos[:, 0].unique().tolist() == [tokenizer.bos_token_id]
    assert with_bos[:, 1:].flatten().tolist() == ids[: len(ids) // 9 * 9]
    few = corpus_perplexity.token_blocks(TEXT, tokenizer, 10, source="x", limit=3)
    assert few.tolist() == [plain[0].tolist(), plain[(len(plain) - 1) // 2].tolist(), plain[-1].tolist()]
    with pytest.raises(UserError, match=r"^--perplexity_path 'a' holds 2 tokens"):
        corpus_perplexity.token_blocks("the cat", tokenizer, 3, source="--perplexity_path 'a'")
