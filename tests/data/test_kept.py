"""Rows and tokens that later starts read from folders of the cache."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import kept, plain_text
from apt_ds.data.cache import META, CacheSettings
from apt_ds.data.kept import TOKENS, blocks_of, kept_rows, kept_tokens, opened_rows
from apt_ds.data.plain_text import TokenBlocks
from apt_ds.data.tokenized import Row, TokenizedSet
from tests.support import tiny

FLAG = "--data_path"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheSettings:
    """A cache that small sources use too."""
    monkeypatch.setattr(kept, "SMALL_BYTES", 0)
    return CacheSettings(str(tmp_path / "cache"))


def warning_set() -> TokenizedSet:
    """A set whose reading warns."""
    logging.getLogger("apt_ds.data.squad").warning("left out 3")
    return TokenizedSet.of(rows(5))


def rows(count: int) -> list[Row]:
    return [{"input_ids": [*range(n % 7 + 1)], "scores": [n / 3], "targets": [n, 0]} for n in range(count)]


def test_rows_are_made_once(settings: CacheSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apt_ds.data.arrow_files._WRITTEN", 10)
    token_set, calls = TokenizedSet.of(rows(25), dropped=3), []

    def make() -> TokenizedSet:
        calls.append(1)
        logging.getLogger("apt_ds.data.squad").warning("left out 3")
        return token_set

    first = opened_rows(kept_rows(["a"], settings, make).folder)
    assert (
        first == token_set
        and first.rows == token_set.rows
        and first.dropped == 3
        and first.fingerprint == token_set.fingerprint
    )
    assert opened_rows(kept_rows(["a"], settings, make).folder) == token_set and len(calls) == 1
    kept_rows(["b"], settings, make)
    kept_rows(["a"], CacheSettings(settings.folder, overwrite=True), make)
    assert len(calls) == 3


def test_a_later_start_warns_again_and_damage_is_mended(
    settings: CacheSettings, caplog: pytest.LogCaptureFixture
) -> None:
    place = kept_rows(["a"], settings, warning_set).folder
    caplog.clear()
    kept_rows(["a"], settings, warning_set)
    assert [record.message for record in caplog.records] == ["left out 3"]
    (place / "rows.arrow").write_bytes(b"x")
    assert opened_rows(kept_rows(["a"], settings, warning_set).folder) == TokenizedSet.of(rows(5))
    assert "is damaged (rows.arrow is not what was written): it is made again" in caplog.text


def test_a_process_that_shows_no_warnings_keeps_them_for_others(
    settings: CacheSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """The ranks but the first are silent, and the first rank of another node fills the cache there."""
    with caplog.at_level(logging.ERROR, "apt_ds.data"):
        # the process is silent, and what listens to it is not
        caplog.handler.setLevel(logging.NOTSET)
        kept_rows(["a"], settings, warning_set)
        logging.getLogger("apt_ds.data.squad").warning("later")
    assert caplog.records == []
    kept_rows(["a"], settings, warning_set)
    assert [record.message for record in caplog.records] == ["left out 3"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    place = tmp_path / "texts"
    place.mkdir()
    for name in ("a", "b"):
        (place / f"{name}.txt").write_text(" ".join(tiny.WORDS) + name, encoding="utf8")
    return place


def expected(place: Path) -> np.ndarray:
    return np.concatenate([*plain_text.token_pieces(plain_text.documents(str(place), FLAG), tiny.tokenizer())])


def test_tokens_are_made_once(texts: Path, settings: CacheSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, tokens = tiny.tokenizer(), expected(texts)
    kept = kept_tokens(str(texts), FLAG, tokenizer, settings)
    blocks, whole = blocks_of(kept.folder, 8, 1), TokenBlocks(tokens, 8, 1)
    assert not kept.temporary and [*blocks.ids] == [*tokens] and blocks.fingerprint == whole.fingerprint
    monkeypatch.setattr(plain_text, "documents", lambda *_: pytest.fail("the texts were read again"))
    monkeypatch.setattr(TokenBlocks, "_fingerprint", lambda _: pytest.fail("the tokens were read again"))
    again = kept_tokens(str(texts), FLAG, tokenizer, settings)
    assert again == kept and blocks_of(again.folder, 8, 1).fingerprint == whole.fingerprint


def test_a_later_start_names_the_columns_that_are_not_used(
    tmp_path: Path, settings: CacheSettings, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "the cat", "more": 1}) + "\n", encoding="utf8")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            kept_tokens(str(path), FLAG, tiny.tokenizer(), settings)
        assert caplog.messages == [f"{path}: not used: 'more' (first in {path}, line 1)"]


def test_other_texts_tokens_and_lengths_are_others(texts: Path, settings: CacheSettings) -> None:
    tokenizer = tiny.tokenizer()
    kept = kept_tokens(str(texts), FLAG, tokenizer, settings)
    assert blocks_of(kept.folder, 8, None).fingerprint != blocks_of(kept.folder, 9, None).fingerprint
    rows_file = texts.parent / "rows.jsonl"
    rows_file.write_text(json.dumps({"text": "the cat"}) + "\n", encoding="utf8")
    assert [*np.memmap(kept_tokens(str(rows_file), FLAG, tokenizer, settings).folder / TOKENS, np.int32)] == [
        *expected(rows_file)
    ]
    tokenizer.add_tokens(["<new>"])
    (texts / "b.txt").write_text("the cat", encoding="utf8")
    folders = {kept.folder, kept_tokens(str(texts), FLAG, tiny.tokenizer(), settings).folder}
    folders.add(kept_tokens(str(texts), FLAG, tokenizer, settings).folder)
    assert len(folders) == 3 and all((folder / META).is_file() for folder in folders)


def test_small_texts_and_an_unwritable_cache_have_temporary_folders(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf8")
    for small, cache in ((1 << 20, tmp_path / "cache"), (0, blocked)):
        monkeypatch.setattr(kept, "SMALL_BYTES", small)
        kept_text = kept_tokens(str(texts), FLAG, tiny.tokenizer(), CacheSettings(str(cache)))
        blocks = blocks_of(kept_text.folder, 8, None)
        assert kept_text.temporary and kept_text.folder.parent == tmp_path and [*blocks.ids] == [*expected(texts)]
        kept_text.remove_temporary()
        assert not kept_text.folder.exists() and len(blocks[0]["input_ids"]) == 8


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_a_bad_text_leaves_nothing(small: int, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SMALL_BYTES", small)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (texts / "b.txt").write_bytes(b"\xff")
    before = {*os.listdir(tmp_path), "cache"}
    with pytest.raises(UserError, match="not UTF-8") as error:
        kept_tokens(str(texts), FLAG, tiny.tokenizer(), CacheSettings(str(tmp_path / "cache")))
    assert "\n" not in str(error.value)
    assert {*os.listdir(tmp_path)} <= before and not list((tmp_path / "cache").glob("*"))


def test_slices_of_a_text_have_tokens_of_their_own(settings: CacheSettings, tmp_path: Path) -> None:
    text = tmp_path / "wiki.txt"
    text.write_text("".join(f"line {n} of the text\n" for n in range(40)), "utf-8")
    names = [f"{text}[:50%]", f"{text}[50%:]", str(text)]
    folders = [kept_tokens(name, FLAG, tiny.tokenizer(), settings).folder for name in names]
    counts = [len(blocks_of(folder, 8, None).ids) for folder in folders]
    assert len(set(folders)) == 3
    # every part ends with an end token of its own
    assert counts[0] + counts[1] == counts[2] + 1
