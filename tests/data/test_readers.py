"""Records of files, with the place of each, and errors that name it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import conversations, formats, readers, source_kind
from apt_ds.data.source_kind import is_plain_text
from apt_ds.data.stream_part import StreamPart
from apt_ds.data.stream_shards import shard_of_file


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
        ("a.json", '{"x": 1}\n{"x": 2}', "Name it .jsonl"),
        ("a.jsonl", '{"x": 1}\n{"x"', "line 2"),
        ("a.tsv", "x\tx\n1\t2\n", "same name"),
        ("a.tsv", "x\ty\n1\n", "not the 2 columns"),
    ],
)
def test_a_broken_file_is_an_error(tmp_path: Path, name: str, text: str, problem: str) -> None:
    with pytest.raises(UserError) as mistake:
        list(readers.read_file(written(tmp_path, name, text)))
    assert problem in str(mistake.value) and name in str(mistake.value)


LONG = "x" * 200_000  # the csv module alone refuses more than 131,072 characters


@pytest.mark.parametrize("cell", [LONG, f'"{LONG}"'])
def test_a_long_cell_is_read(cell: str, tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", f"instruction,output\na,{cell}\n")
    assert [record for _, record in readers.read_file(path)] == [{"instruction": "a", "output": LONG}]
    assert formats.column_names(written(tmp_path, "b.csv", f"x,{cell}\na,b\n")) == ("x", LONG)


def test_a_cell_that_never_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LONGEST_CELL", 1000)
    path = written(tmp_path, "a.csv", 'x,y\na,b\na,"' + "text\n" * 1000)
    with pytest.raises(UserError) as mistake:
        list(readers.read_file(path))
    place, _, problem = str(mistake.value).partition(": ")
    assert place.startswith(f"{path}, line ") and int(place.rpartition(" ")[2]) < 300
    assert problem == "not valid CSV (a cell has more than 1000 characters. Close its quote or split the cell)"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_tables_have_any_line_ends(name: str, end: str, mark: str, tmp_path: Path) -> None:
    separator = "\t" if name == "a.tsv" else ","
    lines = [f"instruction{separator}text", f"a{separator}b", "", f"c{separator}é"]
    path = tmp_path / name
    path.write_bytes((mark + end.join(lines) + end).encode())
    expected = [{"instruction": "a", "text": "b"}, {"instruction": "c", "text": "é"}]
    located = list(readers.read_file(path))
    assert [record for _, record in located] == expected
    assert [place for place, _ in located] == [f"{path}, line 2", f"{path}, line 4"]
    assert formats.column_names(path) == ("instruction", "text")
    path.write_bytes(f"text{separator}id{end}a{separator}b{end}".encode())
    assert is_plain_text(str(path))


def test_a_cr_inside_a_line_of_tsv_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"x\ty\na\rb\tc\n")
    assert [record for _, record in readers.read_file(path)] == [{"x": "a\rb", "y": "c"}]
    path.write_bytes(b"x\ty\ra\t\xff\r")
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 6\)"):
        list(readers.read_file(path))


@pytest.mark.parametrize("streamed", [False, True])
def test_lines_of_json_that_end_with_cr_are_named(streamed: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"instruction":"a","output":"b"}\r{"instruction":"c","output":"d"}\r')
    with pytest.raises(UserError) as mistake:
        StreamPart("s", [shard_of_file(path)]).read(9) if streamed else list(readers.read_file(path))
    assert str(mistake.value) == f"{path}, line 1: lines end with CR. Save the file with LF line ends"
    path.write_bytes(b'{"instruction":"a"} {"instruction":"b"}\r\n')
    with pytest.raises(UserError, match=r"not valid JSON \(Extra data\)\. Put one record on one line"):
        list(readers.read_file(path))


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


@pytest.mark.parametrize("name", [f"{300 * 'x'}.json", f'[{{"instruction": "{300 * "x"}"}}]'])
def test_a_name_that_no_file_can_have_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"^no such data file or folder: .* \.\.\. ") as caught:
        readers.find_files(name, ["train"])
    assert len(str(caught.value)) < 300
    for find in (readers.find_source, conversations.example_source):
        with pytest.raises(UserError, match=r"^no such data file"):
            find(name, "train")
    assert not source_kind.is_plain_text(name)


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


def shards(folder: Path, *names: str) -> list[str]:
    """Files of one record each, under these names."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        written(folder, name, '{"x": "1"}\n')
    return [str(Path(folder / name)) for name in names]


def test_a_folder_holds_shards_in_their_order(tmp_path: Path) -> None:
    names = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    paths = shards(tmp_path, *names, "validation-00000-of-00001.jsonl", "README.md")
    source = readers.find_source(str(tmp_path), ["train"])
    assert [str(file) for file in source.files] == paths[:2] and source.name == str(tmp_path)
    assert [place for place, _ in source.records()] == [f"{path}, line 1" for path in paths[:2]]
    assert source.place_of(f"{paths[1]}, line 1") == f"/{names[1]}, line 1"
    held_out = readers.find_source(str(tmp_path), ["validation", "dev"])
    assert [str(file) for file in held_out.files] == paths[2:3] and held_out.name == paths[2]


def test_training_files_may_have_any_names(tmp_path: Path) -> None:
    paths = shards(tmp_path, "data/a.jsonl", "data/b.jsonl", "data/test.jsonl")
    assert [str(file) for file in readers.find_files(str(tmp_path), ["train"]) or []] == paths[:2]
    with pytest.raises(UserError, match="holds no dev"):
        readers.find_files(str(tmp_path), ["dev"])
    shards(tmp_path, "data/c.json")
    with pytest.raises(UserError, match=r"holds both a\.jsonl and c\.json\. Keep the shards of one format"):
        readers.find_files(str(tmp_path), ["train"])


def test_shards_have_the_same_columns(tmp_path: Path) -> None:
    written(tmp_path, "train-1.csv", "x,y\n1,2\n")
    written(tmp_path, "train-2.csv", "x,z\n1,2\n")
    with pytest.raises(UserError, match=r"train-2\.csv: columns differ from those of train-1\.csv: it adds z"):
        list(readers.find_source(str(tmp_path), ["train"]).records())
    written(tmp_path, "train-2.csv", "y,x\n1,2\n")
    records = [record for _, record in readers.find_source(str(tmp_path), ["train"]).records()]
    assert records == [{"x": "1", "y": "2"}, {"y": "1", "x": "2"}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("some/set", (("some/set",), {})),
        ("some/set:part", (("some/set", "part"), {})),
        ("some/set@v1.0", (("some/set",), {"revision": "v1.0"})),
        ("some/set:part@refs/pr/1", (("some/set", "part"), {"revision": "refs/pr/1"})),
    ],
)
def test_a_hub_name_has_a_configuration_and_a_revision(
    name: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked: list[object] = []

    def load(*names: str, split: str, **options: str) -> list[dict[str, str]]:
        asked.append((names, options))
        if "v1.0" in options.values():
            raise ValueError("Revision Not Found\nmore text")
        return [{"x": split}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = readers.find_source(name, ["train"])
    if "v1.0" in name:
        with pytest.raises(UserError, match=rf"^{name} is neither a file nor .*: Revision Not Found$"):
            list(source.records())
    else:
        assert list(source.records()) == [(f"{name}, record 1", {"x": "train"})]
    assert asked == [expected]


def test_the_identity_of_a_source_is_its_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path in (one, two):
        path.write_text('{"x": 1}', "utf-8")
    first, second = (readers.find_source(str(path), ["train"]) for path in (one, two))
    assert first.identity() == second.identity() and first.bytes() == 8
    two.write_text('{"x": 2}', "utf-8")
    assert first.identity() != second.identity()
