"""Folders of the cache: whole or absent, found again, and checked."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from apt_ds.data import cache
from apt_ds.data.cache import CacheSettings, DamagedError, key_of, read_meta, write_entry


def fill(folder: Path) -> dict[str, object]:
    """One file."""
    (folder / "a.bin").write_bytes(bytes(1000))
    return {"rows": 3}


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    folder = write_entry(tmp_path / "new" / "root", "key", fill)
    assert folder == tmp_path / "new" / "root" / "key" and read_meta(folder)["rows"] == 3
    assert not cache.is_temporary(folder, folder.parent) and cache.is_temporary(folder, tmp_path)

    def broken(partial: Path) -> dict[str, object]:
        fill(partial)
        raise KeyError("x")

    with pytest.raises(KeyError):
        write_entry(folder.parent, "other", broken)
    assert [file.name for file in folder.parent.iterdir()] == ["key"]


def test_the_first_of_two_processes_wins_unless_told_to_overwrite(tmp_path: Path) -> None:
    def meanwhile(partial: Path) -> dict[str, object]:
        write_entry(tmp_path, "key", fill)
        return fill(partial) | {"rows": 4}

    assert read_meta(write_entry(tmp_path, "key", meanwhile))["rows"] == 3
    assert read_meta(write_entry(tmp_path, "key", lambda partial: fill(partial) | {"rows": 5}, True))["rows"] == 5
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path) -> None:
    for name, age in (("a.1.tmp", 2 * cache.LEFT), ("b.2.old", 2 * cache.LEFT), ("c.3.tmp", 10)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.arrow").write_bytes(b"x")
        for path in (tmp_path / name / "rows.arrow", tmp_path / name):
            os.utime(path, (time.time() - age,) * 2)
    write_entry(tmp_path, "key", fill)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.3.tmp", "key"]


def test_a_folder_may_be_gone_before_it_is_made_again(tmp_path: Path) -> None:
    write_entry(tmp_path, "key", fill)
    cache.discard(tmp_path / "key")
    cache.discard(tmp_path / "key")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [10, 1001, 70_001])
def test_a_change_at_the_ends_or_of_the_size_is_damage(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_BLOCK", 1000)

    def large(folder: Path) -> dict[str, object]:
        (folder / "a.bin").write_bytes(bytes(size))
        return {}

    file = write_entry(tmp_path, "key", large) / "a.bin"
    for place in (0, size - 1):
        content = bytearray(size)
        content[place] = 1
        file.write_bytes(content)
        with pytest.raises(DamagedError, match=r"a\.bin is not what was written"):
            read_meta(file.parent)
    file.write_bytes(bytes(size))
    assert read_meta(file.parent)["files"]["a.bin"][0] == size
    file.write_bytes(bytes(size + 1))
    with pytest.raises(DamagedError):
        read_meta(file.parent)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"files": {"absent": [1, 2]}})])
def test_facts_that_cannot_be_used_are_damage(text: str, tmp_path: Path) -> None:
    (tmp_path / cache.META).write_text(text, "utf-8")
    with pytest.raises(DamagedError):
        read_meta(tmp_path)


def test_the_key_depends_on_facts_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key_of("a", {"x": 1, "y": 2}), key_of("a", {"y": 2, "x": 1}), key_of("a", {"x": 2})]
    assert keys[0] == keys[1] != keys[2]
    monkeypatch.setattr(cache, "_code", lambda: "other")
    assert key_of("a", {"x": 1, "y": 2}) != keys[0]


def test_the_root_is_the_option_or_else_a_folder_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_DATASETS_CACHE", "APT_DS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CacheSettings().root() == tmp_path / "apt_ds" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert CacheSettings().root() == Path.home() / ".cache" / "apt_ds" / "data"
    monkeypatch.setenv("HF_DATASETS_CACHE", "/shared")
    assert CacheSettings().root() == Path("/shared/apt_ds") and CacheSettings("/own").root() == Path("/own")
