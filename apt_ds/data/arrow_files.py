"""The Arrow files of a tokenized data set: its examples as JSON, and its rows, made by `datasets.Dataset.map`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.data.tokenized import Column, Row

EXAMPLES = "examples.arrow"
_ROWS = "rows"
_TRAINED = "trained"
_BATCH = 1000  # examples that a process tokenizes at once
_WRITTEN = 10_000  # rows of a record batch in the file
_PARALLEL = "TOKENIZERS_PARALLELISM"

Maker = Callable[[Sequence[str], Sequence[str]], tuple[list[Row], list[bool]]]


class ExampleFile(Sequence[tuple[str, str]]):
    """The contents and places of examples, in a mapped file."""

    def __init__(self, path: Path) -> None:
        table = _mapped(path)
        self.batches = table.to_batches()
        self.starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        batch, place = self.batches[number], int(index - self.starts[number])
        return batch.column(0)[place].as_py(), batch.column(1)[place].as_py()


def _mapped(path: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def write_examples(path: Path, examples: Iterator[tuple[str, str]]) -> int:
    """Write contents and places to a file. Returns how many."""
    import pyarrow as pa

    schema, count = pa.schema({"example": pa.string(), "place": pa.string()}), 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while part := list(islice(examples, _WRITTEN)):
            contents, places = zip(*part, strict=True)
            writer.write_batch(pa.record_batch([pa.array(contents), pa.array(places)], schema=schema))
            count += len(part)
    return count


def write_rows(folder: Path, maker: Maker, processes: int) -> tuple[np.ndarray, np.ndarray]:
    """Write the rows of the folder's examples. Returns the lengths of the rows, and which of them training sees.

    Raises:
        UserError: a process has died.
    """
    import datasets

    examples = datasets.Dataset.from_file(str(folder / EXAMPLES)).with_format("arrow")
    features = _features(maker, examples)
    with _quiet(datasets), _threads(processes):
        try:
            examples.map(
                ArrowRows(maker, features),
                batched=True,
                batch_size=_BATCH,
                writer_batch_size=_WRITTEN,
                num_proc=processes if processes > 1 else None,
                remove_columns=examples.column_names,
                features=features,
                cache_file_name=str(folder / f"{_ROWS}.arrow"),
                load_from_cache_file=False,
                new_fingerprint=_ROWS,
                desc="Tokenizing",
            )
        except RuntimeError as error:
            if "abruptly died" not in str(error):
                raise
            raise UserError(
                f"a process that tokenizes has died, which a full memory causes. "
                f"Give fewer --preprocessing_num_workers than {processes}"
            ) from error
    tables = [_mapped(file) for file in _row_files(folder)]
    trained = np.concatenate([table.column(_TRAINED).to_numpy() for table in tables]).astype(bool)
    return rows_of(folder)["input_ids"].lengths(), trained


def _features(maker: Maker, examples: Any) -> Any:
    """The types of the columns, from the first rows."""
    import datasets

    first = examples[:8]
    rows, _ = maker(first.column(0).to_pylist(), first.column(1).to_pylist())

    def column_type(name: str) -> Any:
        fraction = any(isinstance(value, float) for row in rows for value in row[name])
        return datasets.List(datasets.Value("float32" if fraction else "int32"))

    return datasets.Features({name: column_type(name) for name in rows[0]} | {_TRAINED: datasets.Value("bool")})


class ArrowRows:
    """What `map` calls: a table of examples to a table of rows."""

    def __init__(self, maker: Maker, features: Any) -> None:
        self.maker, self.features, self.process = maker, features, os.getpid()

    def __call__(self, table: Any) -> Any:
        """The rows of a batch. A worker ends if the process that started it has ended."""
        import pyarrow as pa

        if self.process not in (os.getpid(), os.getppid()):
            os._exit(1)

        rows, trained = self.maker(table.column(0).to_pylist(), table.column(1).to_pylist())
        schema = self.features.arrow_schema
        arrays: list[Any] = []
        for name in schema.names[:-1]:
            kind = schema.field(name).type
            borders = np.cumsum([0, *(len(row[name]) for row in rows)], dtype=np.int32)
            dtype = np.float32 if str(kind.value_type) == "float" else np.int32
            values = np.fromiter(chain.from_iterable(row[name] for row in rows), dtype, count=int(borders[-1]))
            arrays.append(pa.ListArray.from_arrays(borders, values, type=kind))
        return pa.Table.from_arrays([*arrays, pa.array(trained)], names=schema.names)


def write_columns(folder: Path, columns: Mapping[str, Column]) -> None:
    """Write rows that are in memory, for `rows_of`."""
    import pyarrow as pa

    types = {name: pa.float32() if column.floating else pa.int32() for name, column in columns.items()}
    schema = pa.schema({name: pa.list_(kind) for name, kind in types.items()})
    with pa.OSFile(str(folder / f"{_ROWS}.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        count = len(next(iter(columns.values())))
        for start in range(0, count, _WRITTEN):
            arrays = []
            for name, column in columns.items():
                rows = [column[row] for row in range(start, min(start + _WRITTEN, count))]
                borders = np.cumsum([0, *map(len, rows)], dtype=np.int32)
                values = np.concatenate(rows).astype(types[name].to_pandas_dtype())
                arrays.append(pa.ListArray.from_arrays(borders, values, type=schema.field(name).type))
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def rows_of(folder: Path) -> dict[str, Column]:
    """The columns of the rows in a folder, in mapped files."""
    tables = [_mapped(file) for file in _row_files(folder)]
    names = [name for name in tables[0].column_names if name != _TRAINED]
    return {name: Column(_chunks(tables, name)) for name in names}


def _row_files(folder: Path) -> list[Path]:
    """The files that `map` wrote, one for each process, in the order of their rows."""
    return sorted(folder.glob(f"{_ROWS}*.arrow"))


def _chunks(tables: Iterable[Any], name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for table in tables:
        for chunk in table.column(name).chunks:
            yield chunk.offsets.to_numpy(), chunk.values.to_numpy()


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Show the progress on a terminal alone."""
    shown = datasets.are_progress_bars_disabled()
    if sys.stderr is None or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()


@contextmanager
def _threads(processes: int) -> Iterator[None]:
    """Let several processes have one thread each in the tokenizer. A user's own choice stays.

    `datasets` leaves a copy in the place of `os.environ`. Whoever holds the first one would see no later change.
    """
    environment = os.environ
    own = environment.get(_PARALLEL)
    if own is None:
        environment[_PARALLEL] = "false" if processes > 1 else "true"
    try:
        yield
    finally:
        os.environ = environment  # noqa: B003
        if own is None:
            del environment[_PARALLEL]
        else:
            environment[_PARALLEL] = own
