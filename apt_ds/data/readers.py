"""Where records come from: a file, the shards in a folder, or a hub data set. Records are read one at a time.

Each comes with its place, which error messages name. `formats.py` reads the files.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apt_ds.config.errors import Stopped, UserError
from apt_ds.config.paths import shortened
from apt_ds.data.formats import READERS, Located, column_names, read_table
from apt_ds.data.values import kind, leave_out, log, text_of, value_of

__all__ = ["ENDINGS", "JSON", "Located", "Source", "kind", "leave_out", "log", "text_of", "value_of"]

JSON = (".json", ".jsonl")
ENDINGS = tuple(READERS)
_FILE_ENDINGS = {*ENDINGS, ".txt", ".gz", ".zip"}
_HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(:(?P<config>[\w.+-]+))?(@(?P<revision>[\w./-]+))?")
_HELD_OUT = ("validation", "valid", "val", "dev", "test", "eval")  # first words of files that are no training data


@dataclass(frozen=True)
class Source:
    """The records of one split.

    Attributes:
        name: what the user gave, or the file that was found in it.
        files: the files in order. None of them for a hub data set.
        split: the split of a hub data set.
        config: the configuration of a hub data set.
        headerless: the columns of a table that has no header line.
    """

    name: str
    files: tuple[Path, ...] = ()
    split: str = "train"
    config: str = ""
    headerless: tuple[str, ...] = ()
    _loaded: list[Any] = field(default_factory=list, compare=False, repr=False)

    def records(self) -> Iterator[Located]:
        """All records with their places.

        Raises:
            UserError: a file or record cannot be read. The message names file and line, or shard and row.
        """
        if not self.files:
            yield from _numbered(self.name, self.hub())
            return
        check_columns(self.files)
        for file in self.files:
            yield from read_file(file, headerless=self.headerless)

    def hub(self) -> Any:
        """The loaded hub data set. Raises UserError."""
        if not self._loaded:
            self._loaded.append(load_hub(self.name, self.split, self.config))
        return self._loaded[0]

    def bytes(self) -> int:
        """Bytes of the files, or of the hub data set on the disk. 0 if unknown."""
        if self.files:
            return sum(file.stat().st_size for file in self.files)
        return sum(Path(part["filename"]).stat().st_size for part in getattr(self.hub(), "cache_files", []))

    def identity(self) -> str:
        """A hash of the content and of the names that places have."""
        hasher = hashlib.sha256()
        for file in self.files:
            hasher.update(f"{self.place_of(str(file))}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    hasher.update(block)
        if not self.files:
            hasher.update(f"hub\0{self.name}\0{getattr(self.hub(), '_fingerprint', '')}".encode())
        return hasher.hexdigest()

    def place_of(self, where: str) -> str:
        """The place of a record without what the user gave, so that a moved file keeps its cache."""
        return where.removeprefix(self.name)


def find_source(
    name: str,
    stems: Sequence[str],
    endings: Sequence[str] = ENDINGS,
    hub: tuple[str, str, str] = ("", "train", ""),
    headerless: Sequence[str] = (),
) -> Source:
    """The records that `name` stands for: a file, a folder, or a hub data set `name:config@revision`.

    Args:
        name: What the user gave.
        stems: First words of the files of this split in a folder. The first one is the split.
        endings: Formats of files that the task reads.
        hub: name, split and configuration of the hub data set. An empty name: `name` itself.
        headerless: Columns of a table that has no header.

    Raises:
        UserError: it is none of them, or the folder holds no such file or several.
    """
    files = find_files(name, stems, endings)
    if files is None:
        return Source(hub[0] or name, (), hub[1], hub[2])
    alone = str(files[0]) if len(files) == 1 else name
    return Source(alone, tuple(files), stems[0], "", tuple(headerless))


def find_files(name: str, stems: Sequence[str], endings: Sequence[str] = ENDINGS) -> list[Path] | None:
    """The file `name`, or the files of a split in the folder `name`. None for the name of a hub data set.

    In a folder: the file with one of `stems`, or its shards (train-00000-of-00002.parquet, train_1.jsonl). Training
    data may have any names where no file begins with a stem.
    """
    path = Path(name)
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        if is_hub_name(name):
            return None
        raise UserError(f"no such data file or folder: {shortened(name)}. Give one that exists, or a hub name")
    matching = [path / f"{stem}{ending}" for stem in stems for ending in endings]
    matching = [file for file in matching if file.is_file()]
    if len(matching) > 1:
        raise UserError(f"{name} holds both {matching[0].name} and {matching[1].name}. Give the path of one of them")
    return matching or _shards(path, stems, endings)


def _shards(path: Path, stems: Sequence[str], endings: Sequence[str]) -> list[Path]:
    folders = [path, path / "data"]  # the hub keeps the files of a data set in a folder of this name
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
    files = [file for file in files if file.suffix.lower() in endings and not file.name.startswith(".")]
    shards = [file for file in files if any(re.match(rf"{re.escape(stem)}[-_.\d]", file.stem) for stem in stems)]
    if not shards and "train" in stems and not any(file.stem in stems for file in files):
        shards = [file for file in files if re.split(r"[-_.\d]", file.stem)[0] not in _HELD_OUT]
    if not shards:
        wanted = " nor ".join(f"{stem}.*" for stem in stems)
        raise UserError(f"{path} holds no {wanted} (endings: {', '.join(endings)})")
    odd = [file for file in shards if file.suffix.lower() != shards[0].suffix.lower()]
    if odd:
        raise UserError(f"{path} holds both {shards[0].name} and {odd[0].name}. Keep the shards of one format")
    return shards


def check_columns(files: Sequence[Path]) -> None:
    """Raise UserError where the tables of one data set have different columns."""
    if len(files) < 2 or (first := column_names(files[0])) is None:
        return
    for file in files[1:]:
        other = column_names(file) or ()
        if set(other) != set(first):
            more = ", ".join(sorted(set(other) - set(first)))[:100] or "nothing"
            less = ", ".join(sorted(set(first) - set(other)))[:100] or "nothing"
            raise UserError(f"{file}: columns differ from those of {files[0].name}: it adds {more} and lacks {less}")


def is_hub_name(name: str) -> bool:
    """Whether a data set of the hub may be called so, with a configuration and a revision if given."""
    match = _HUB_NAME.fullmatch(name)
    return match is not None and match["name"] != "builtin" and Path(match["name"]).suffix.lower() not in _FILE_ENDINGS


def read_file(path: Path, headerless: Sequence[str] = ()) -> Iterator[Located]:
    """The records of a file: .json (one list, or an object with it under 'data'), .jsonl, .tsv, .csv, .parquet, .arrow.

    headerless: the columns of a table that has no header line, recognised by a first line with none of these names.

    Raises:
        UserError: another ending, not readable, empty, not of its form. The message names file and line.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{path}: unknown file ending '{path.suffix}'. Use one of {', '.join(ENDINGS)}")
    return read_table(path, headerless) if ending in (".tsv", ".csv") else READERS[ending](path)


def load_hub(name: str, split: str, config: str = "", streaming: bool = False) -> Any:
    """One split of a hub data set `name:config@revision`. `config` is that of a name without one.

    streaming: read it while it is downloaded, as an `IterableDataset`.

    Raises:
        UserError: there is none that can be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{name} is not a file, and hub datasets need `pip install datasets`") from error
    parts = _HUB_NAME.fullmatch(name)
    assert parts is not None
    config = parts["config"] or config
    options: dict[str, Any] = {"revision": parts["revision"]} if parts["revision"] else {}
    if streaming:
        options["streaming"] = True
    try:
        return datasets.load_dataset(parts["name"], *([config] if config else []), split=split, **options)
    except Stopped:
        raise
    except Exception as error:  # the hub client has no common error class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"{name} is neither a file nor a dataset whose split '{split}' can be loaded: {reason}"
        raise UserError(message) from error


def _numbered(name: str, records: Any) -> Iterator[Located]:
    number = 0
    try:
        for number, record in enumerate(records, start=1):
            yield f"{name}, record {number}", record
    except (ArithmeticError, LookupError, ValueError) as error:  # of a value that Python cannot represent
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: a record after record {number} has a value that cannot be read: {reason}") from error
