"""Parquet and Arrow files with values, texts and columns that cannot be used: one line that names the place."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.column_files import schema_names
from apt_ds.data.readers import _numbered, read_file
from apt_ds.data.stream_part import StreamPart
from apt_ds.data.stream_shards import shard_of_file
from tests.support.column_tables import NAMES, write_table


def refusal(path: Path, streamed: bool) -> str:
    """The message of the UserError that the file is refused with."""
    with pytest.raises(UserError) as caught:
        StreamPart("s", [shard_of_file(path)]).read(9999) if streamed else list(read_file(path))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    return str(caught.value)


def whole(values: list[int], kind: pa.DataType) -> pa.Array:
    """Whole numbers as the values of a type of the same width, whatever these then are."""
    return pa.array(values, pa.int32() if kind == pa.date32() else pa.int64()).view(kind)


def not_utf8() -> pa.Array:
    """Three texts, the last of them no UTF-8."""
    content = pa.array([b"x", b"y", b"caf\xe9"], pa.binary())
    return pa.Array.from_buffers(pa.string(), 3, content.buffers())


VALUES: dict[str, pa.Array] = {
    "timestamp": whole([0, 0, 10**18], pa.timestamp("us")),
    "timestamp of a zone": whole([0, 0, 10**18], pa.timestamp("us", "Europe/Berlin")),
    "date32": whole([0, 0, 10**9], pa.date32()),
    "date64": whole([0, 0, 86_400_000 * 10**9], pa.date64()),
    "duration": whole([0, 0, 2**62], pa.duration("ms")),
    "inside": pa.StructArray.from_arrays([whole([0, 0, 10**18], pa.timestamp("us"))], ["t"]),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", VALUES)
def test_a_value_out_of_range_is_named(kind: str, name: str, streamed: bool, tmp_path: Path) -> None:
    path = write_table(tmp_path / name, pa.table({"instruction": ["a"] * 3, "output": ["b"] * 3, "when": VALUES[kind]}))
    message = refusal(path, streamed)
    assert message.startswith(f"{path}, row 3: column 'when' has a value that cannot be read as ")
    assert message.endswith(". Mend the value or remove the column")


def test_rows_of_other_batches_count(tmp_path: Path) -> None:
    when = whole([0] * 2500 + [10**18], pa.timestamp("us"))
    path = write_table(tmp_path / "a.parquet", pa.table({"output": ["b"] * 2501, "when": when}))
    assert f"{path}, row 2501: column 'when'" in refusal(path, False)
    part = StreamPart("s", [shard_of_file(path)], 0, 2)
    with pytest.raises(UserError, match="row 2501: column 'when'"):
        part.read(9999)
    assert len(StreamPart("s", [shard_of_file(path)], 1, 2).read(9999)) == 1250  # the others' rows are theirs to check


def test_an_unknown_time_zone_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", pa.table({"when": whole([1], pa.timestamp("us", "Mars/Phobos"))}))
    assert "row 1: column 'when' has a value that cannot be read as timestamp[us, tz=Mars/Phobos]" in refusal(
        path, False
    )


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inside", [False, True])
def test_text_that_is_not_utf8_is_named(inside: bool, name: str, streamed: bool, tmp_path: Path) -> None:
    column = pa.ListArray.from_arrays([0, 1, 2, 3], not_utf8()) if inside else not_utf8()
    path = write_table(tmp_path / name, pa.table({"instruction": ["a"] * 3, "output": column}))
    expected = f"{path}, row 3: column 'output' has text that is not UTF-8. Save it as UTF-8"
    assert refusal(path, streamed) == expected


@pytest.mark.parametrize("streamed", [False, True])
def test_a_dictionary_of_text_that_is_not_utf8_is_named(streamed: bool, tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), not_utf8())
    path = write_table(tmp_path / "a.parquet", pa.table({"instruction": ["a"] * 3, "output": column}))
    assert refusal(path, streamed) == f"{path}: column 'output' has text that is not UTF-8. Save it as UTF-8"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_two_columns_of_one_name_are_refused(name: str, streamed: bool, tmp_path: Path) -> None:
    columns = [pa.array([text]) for text in ("a", "b", "c")]
    path = write_table(tmp_path / name, pa.Table.from_arrays(columns, ["instruction", "output", "output"]))
    expected = f"{path}: two columns have the same name ('output'). Rename or remove one of them"
    assert refusal(path, streamed) == expected


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_two_fields_of_one_name_are_refused(name: str, streamed: bool, tmp_path: Path) -> None:
    field = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    path = write_table(tmp_path / name, pa.table({"output": field}))
    message = refusal(path, streamed)
    assert f"{path}, row 1: column 'output'" in message and "duplicate field names" in message


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_pointer_of_git_lfs_is_no_broken_table(name: str, streamed: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "utf-8")
    message = refusal(path, streamed)
    assert "is a Git LFS pointer" in message and "not a whole" not in message


def test_a_name_of_a_column_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.arrow", pa.table({"output_": ["a"]}))
    path.write_bytes(path.read_bytes().replace(b"output_", b"outpu\xff\xfe"))
    with pytest.raises(UserError, match="the name of a column is not UTF-8 text"):
        schema_names(path)
    assert "the name of a column is not UTF-8 text" in refusal(path, False)


def test_a_value_of_a_hub_data_set_that_is_out_of_range_is_named() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset(pa.table({"when": whole([0, 10**18], pa.timestamp("us"))}))
    with pytest.raises(UserError, match="owner/set: a record after record 1 has a value that cannot be read"):
        list(_numbered("owner/set", rows))


@pytest.mark.parametrize("name", ["a.arrow", "stream.arrow"])
def test_an_offset_outside_an_arrow_file_is_refused(name: str, tmp_path: Path) -> None:
    """A text that would begin behind the values: pyarrow would read there."""
    path = write_table(tmp_path / name, pa.table({"output": ["abcd", "efgh", "ijkl"]}))
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 4, 8, 12))
    data = path.read_bytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, offsets[:4] + (9).to_bytes(4, "little") + offsets[8:]))
    with pytest.raises(UserError, match=r"is not a whole Arrow file \(.*\)\. Copy or make it again"):
        list(read_file(path))
