"""Tables as Parquet and Arrow files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

NAMES = ("a.parquet", "a.arrow", "stream.arrow")


def write_table(path: Path, table: pa.Table) -> Path:
    """The table as Parquet, or as an Arrow file or stream, by the name of the file."""
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        make = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
            writer.write_table(table)
    return path
