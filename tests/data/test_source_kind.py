"""Whether a source is plain text shows in its ending and its columns."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from apt_ds.config.errors import UserError
from apt_ds.data.source_kind import is_plain_text

TEXT, ALPACA = {"text": "one two", "id": 3}, {"instruction": "say one", "output": "one", "text": "both"}


@pytest.mark.parametrize("record", [TEXT, ALPACA, {"messages": []}, {"conversations": []}])
@pytest.mark.parametrize("ending", ["json", "data.json", "jsonl", "csv", "tsv", "parquet", "arrow"])
def test_columns_say_what_a_file_holds(ending: str, record: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / f"data.{ending}"
    if ending in ("csv", "tsv"):
        separator = "," if ending == "csv" else "\t"
        path.write_text("\n".join(separator.join(cells) for cells in (record, ["x"] * len(record))), "utf-8-sig")
    elif ending == "parquet":
        parquet.write_table(pyarrow.table({name: ["x"] for name in record}), path)
    elif ending == "arrow":
        table = pyarrow.table({name: ["x"] for name in record})
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif ending == "jsonl":
        path.write_text("\n" + json.dumps(record) + "\n" + json.dumps(TEXT))
    else:
        path.write_text(json.dumps({"data": [record]} if ending == "data.json" else [record, TEXT], indent=1))
    assert is_plain_text(str(path)) == (record is TEXT)


def test_a_long_first_record_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"id": 1, "other": "x" * (1 << 17), "text": "one"}]))
    assert is_plain_text(str(path))


def test_text_files_and_folders_of_them_are_plain_text(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.jsonl").write_text(json.dumps(TEXT))
    (tmp_path / "wiki.TXT").write_text("one two")
    assert is_plain_text(str(tmp_path / "shards")) and is_plain_text(str(tmp_path / "wiki.TXT"))
    # their readers have the words for what is wrong
    (tmp_path / "broken.json").write_text('[{"text": ')
    for name in ("broken.json", "absent.txt", "absent.json"):
        assert not is_plain_text(str(tmp_path / name))


def test_a_slice_is_of_one_text_file(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps(TEXT) + "\n")
    assert is_plain_text(f"{tmp_path / 'a.txt'}[50%:]")
    for name in (tmp_path, tmp_path / "a.jsonl", "owner/set"):
        with pytest.raises(UserError, match=r"a slice requires one \.txt file"):
            is_plain_text(f"{name}[50%:]")


def test_a_licence_beside_records_makes_no_text_of_them(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("All rights reserved.")
    assert is_plain_text(str(tmp_path))
    (tmp_path / "train.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}))
    with pytest.raises(UserError, match=r"holds both LICENSE\.txt and train\.jsonl\. Keep the files of one format"):
        is_plain_text(str(tmp_path))


def test_a_file_nested_too_deeply_is_left_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a":' + "[" * 200_000, "utf-8")
    assert not is_plain_text(str(tmp_path / "a.json"))
