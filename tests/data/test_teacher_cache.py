"""Folders of what a teacher says: whole or absent, of the right base and data, and never larger than the disk."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.cache import DamagedError
from apt_ds.data.teacher_cache import IDS, CacheWriter, Layout, TeacherCache, name_of, refuse_other, remove, usable

FACTS = {
    "model": "a", "config": "b", "data": "c", "rows": "d", "dtype": "torch.float32", "temperature": 1.0, "top_k": 3,
}  # fmt: skip
LAYOUT = Layout(np.array([1, 4, 9]), np.array([2, 1, 3]), 3)


def content(place: int) -> tuple[np.ndarray, np.ndarray]:
    count = int(LAYOUT.counts[place])
    ids = np.arange(count * 3, dtype=np.int32).reshape(count, 3) + 100 * place
    return ids, -ids.astype(np.float16) / 8


def written_cache(folder: Path) -> TeacherCache:
    writer = CacheWriter(folder, LAYOUT)
    # places come in any order, and several at once
    parts = [content(place) for place in (2, 0)]
    writer.write([2, 0], *(np.concatenate(column) for column in zip(*parts, strict=True)))
    writer.write([1], *content(1))
    assert not folder.exists()
    writer.finish(FACTS, 1.5)
    return TeacherCache(folder)


def test_tokens_come_back_row_by_row(tmp_path: Path) -> None:
    cache = written_cache(tmp_path / "cache")
    assert usable(tmp_path / "cache", FACTS) and cache.layout.tokens == 6 and cache.seconds == 1.5
    ids, log_probabilities = cache.tokens_of([9, 1])
    assert np.array_equal(ids, np.concatenate([content(2)[0], content(0)[0]])) and ids.dtype == np.int32
    assert np.array_equal(log_probabilities, np.concatenate([content(2)[1], content(0)[1]]))
    assert log_probabilities.dtype == np.float16
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_token_takes_384_bytes_with_64_likeliest_tokens() -> None:
    few, many = (Layout(np.array([0]), np.array([tokens]), 64).bytes for tokens in (1, 1001))
    assert many - few == 384 * 1000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model", "another base model"),
        ("data", "other training data"),
        ("temperature", "another --distill_temperature"),
    ],
)
def test_a_cache_of_something_else_is_refused(name: str, text: str, tmp_path: Path) -> None:
    written_cache(tmp_path / "cache")
    other = FACTS | {name: "other"}
    with pytest.raises(UserError, match=f"was made from {text}.*--overwrite_cache"):
        usable(tmp_path / "cache", other)
    assert name_of(other) != name_of(FACTS) == name_of(dict(FACTS))


def test_a_folder_of_other_files_is_refused_and_stays(tmp_path: Path) -> None:
    assert not usable(tmp_path / "absent", FACTS) and not usable(tmp_path, FACTS)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf8")
    with pytest.raises(UserError, match="is not a cache of probabilities"):
        usable(tmp_path, FACTS)
    remove(tmp_path)
    # also where the cache is to be made again
    with pytest.raises(UserError, match="is not a cache of probabilities"):
        refuse_other(tmp_path)
    refuse_other(tmp_path / "absent")
    assert (tmp_path / "notes.txt").is_file()


def test_damage_is_found(tmp_path: Path) -> None:
    digest = written_cache(tmp_path / "cache").digest
    values = bytearray((tmp_path / "cache" / IDS).read_bytes())
    values[0] ^= 1
    (tmp_path / "cache" / IDS).write_bytes(values)
    with pytest.raises(DamagedError):
        usable(tmp_path / "cache", FACTS)
    remove(tmp_path / "cache")
    assert written_cache(tmp_path / "cache").digest == digest


def test_too_small_a_disk_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 100_000_000))
    large = Layout(np.array([0]), np.array([1_000_000]), 64)
    with pytest.raises(UserError, match=r"1,000,000 trained tokens need 384.0 MB under .*, and 100.0 MB are free"):
        CacheWriter(tmp_path / "deep" / "cache", large)
    assert not list((tmp_path / "deep").iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf8")
    with pytest.raises(UserError, match=r"which cannot be written .*--teacher_cache on another disk"):
        CacheWriter(tmp_path / "file" / "cache", LAYOUT)
