"""Records of files, with the place of each, and errors that name it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import readers


def written(folder: Path, name: str, text: str) -> Path:
    """A file with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"x": "1"}, {"x": "2"}]'),
        ("a.json", '{"data": [{"x": "1"}, {"x": "2"}]}'),
        ("a.jsonl", '{"x": "1"}\n\n{"x": "2"}\n'),
        ("a.tsv", "x\n1\n2\n"),
        ("a.csv", 'x\n"1"\n2\n'),
    ],
)
def test_all_formats_give_the_same_records(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path, name, text)
    located = list(readers.read_file(path))
    assert [record for _, record in located] == [{"x": "1"}, {"x": "2"}]
    assert all(str(path) in place for place, _ in located)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.txt", "x", "unknown file ending"),
        ("a.json", " ", "is empty"),
        ("a.json", '{"x": 1}', "must hold a list"),
        ("a.json", '{"x": 1}\n{"x": 2}', "name it .jsonl"),
        ("a.jsonl", '{"x": 1}\n{"x"', "line 2"),
        ("a.tsv", "x\tx\n1\t2\n", "same name"),
        ("a.tsv", "x\ty\n1\n", "not the 2 columns"),
    ],
)
def test_a_broken_file_is_an_error(tmp_path: Path, name: str, text: str, problem: str) -> None:
    with pytest.raises(UserError) as mistake:
        list(readers.read_file(written(tmp_path, name, text)))
    assert problem in str(mistake.value) and name in str(mistake.value)


def test_a_file_is_found_in_its_folder(tmp_path: Path) -> None:
    path = written(tmp_path, "train.jsonl", "{}")
    assert readers.find_files(str(path), ["train"]) == [path]
    assert readers.find_files(str(tmp_path), ["train"]) == [path]
    assert readers.find_files("some/dataset", ["train"]) is None
    written(tmp_path, "train.json", "[]")
    with pytest.raises(UserError, match="both"):
        readers.find_files(str(tmp_path), ["train"])
    with pytest.raises(UserError, match="no such data file"):
        readers.find_files(str(tmp_path / "absent.json"), ["train"])


def test_few_broken_records_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        readers.leave_out(["f, line 3"], 200, "is broken", "f")
    assert "left out 1 records" in caplog.text
    with pytest.raises(UserError, match="f, line 3: is broken"):
        readers.leave_out(["f, line 3"], 20, "is broken", "f")


def test_a_value_is_read_by_the_first_column_present() -> None:
    assert readers.value_of({"b": 1, "c": 2}, ("a", "b", "c"), "here") == 1
    with pytest.raises(UserError, match="here: no column 'a'"):
        readers.value_of({"b": 1}, ("a",), "here")
    with pytest.raises(UserError, match="'b' must be text, not int"):
        readers.text_of({"b": 1}, ("b",), "here")
