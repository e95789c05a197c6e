"""Folders on the disk that hold tokenized data sets, each under a fingerprint of what made it.

A folder is whole or absent: it is written under another name and then renamed. It holds Arrow files, and `meta.json`
with sizes and checksums, by which damage is found.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.config.paths import cache_root

META = "meta.json"
LEFT = 24 * 3600  # seconds without a change after which an unfinished folder counts as left behind
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHECKED = 64  # blocks of a file that its checksum covers
_BLOCK = 1 << 20

log = logging.getLogger(__name__)


class DamagedError(Exception):
    """A folder of the cache lacks a file, or holds other bytes than were written."""


@dataclass(frozen=True)
class CacheSettings:
    """Where tokenized data sets are kept, and how they are made.

    Attributes:
        folder: the folder of the cache. '' is the default.
        overwrite: make a data set again that the cache has.
        processes: number of processes that tokenize. 0 takes one for each processor of this node, fewer for few rows.
    """

    folder: str = ""
    overwrite: bool = False
    processes: int = 0

    def root(self) -> Path:
        """The folder that holds one folder per data set."""
        if self.folder:
            return Path(self.folder)
        if shared := os.environ.get("HF_DATASETS_CACHE"):
            return Path(shared) / "apt_ds"
        return cache_root() / "data"


def write_entry(root: Path, key: str, fill: Callable[[Path], dict[str, Any]], overwrite: bool = False) -> Path:
    """Make the folder `key` in `root` by `fill`, which writes files and returns facts for `meta.json`.

    Where the cache cannot be written, the folder is a temporary one outside the cache, after a warning.

    Raises:
        UserError: the disk is full, or a process that tokenizes has died.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=root))
    except OSError as error:
        _refuse_full(error, root)
        partial = Path(tempfile.mkdtemp(prefix="apt_ds_data_"))
        log.warning(
            "the cache %s cannot be written (%s): the tokenized data is not kept. Give --data_cache_dir",
            root,
            error.strerror,
        )
        with _removed_on_error(partial, partial):
            _fill(partial, fill)
        return partial
    _sweep(root)
    with _removed_on_error(partial, root):
        if overwrite:
            # before and not after: nodes that share the cache make the folder again at once
            discard(root / key)
        _fill(partial, fill)
        return moved(partial, root / key)


def _sweep(root: Path) -> None:
    """Remove what processes have left that were killed while they wrote."""
    for left in [*root.glob("*.tmp"), *root.glob("*.old")]:
        with suppress(OSError):
            if max(file.stat().st_mtime for file in [left, *left.iterdir()]) < time.time() - LEFT:
                shutil.rmtree(left, ignore_errors=True)


def is_temporary(folder: Path, root: Path) -> bool:
    """Whether `write_entry` made a folder outside the cache."""
    return folder.parent != root


def _fill(folder: Path, fill: Callable[[Path], dict[str, Any]]) -> None:
    write_meta(folder, fill(folder))


def write_meta(folder: Path, facts: dict[str, Any]) -> None:
    """Write facts about a folder to `meta.json`, with the checksums of all files that it has."""
    files = {file.name: _checksum(file) for file in sorted(folder.iterdir())}
    (folder / META).write_text(json.dumps(facts | {"files": files}, ensure_ascii=False), "utf-8")


@contextmanager
def _removed_on_error(folder: Path, root: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            _refuse_full(error, root)
        raise


def _refuse_full(error: OSError, root: Path) -> None:
    if error.errno in _FULL:
        raise UserError(
            f"the disk is full: the tokenized data cannot be written to {root} ({os.strerror(error.errno)}). "
            "Free space there, or give --data_cache_dir on another disk"
        ) from error


def moved(partial: Path, folder: Path) -> Path:
    """Give a folder its name. Another process may have made the same folder meanwhile."""
    partial.chmod(0o777 & ~_umask())  # other users of a shared cache may read it
    try:
        partial.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise
        log.debug("%s was made by another process (%s)", folder, error)
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _umask() -> int:
    value = os.umask(0o022)
    os.umask(value)
    return value


def discard(folder: Path) -> None:
    """Remove a folder of the cache if it is there. A process that has mapped its files keeps them."""
    old = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".old", dir=folder.parent))
    with suppress(FileNotFoundError):  # another process was first, or there was none
        folder.rename(old / folder.name)
    shutil.rmtree(old, ignore_errors=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """The facts about a folder, whose files are checked.

    Raises:
        DamagedError: a file is missing or is not what was written.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text("utf-8"))
        for name, expected in meta["files"].items():
            if _checksum(folder / name) != expected:
                raise DamagedError(f"{name} is not what was written")
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DamagedError(getattr(error, "strerror", None) or f"{META} cannot be read") from error
    return meta


def _checksum(file: Path) -> list[int]:
    """Size and CRC of a file. Of a large one, the CRC of blocks that are spread over it."""
    size, crc = file.stat().st_size, 0
    last = max(0, size - _BLOCK)
    places: Sequence[int] = range(0, size, _BLOCK)
    if len(places) > _CHECKED:
        places = [last * i // (_CHECKED - 1) for i in range(_CHECKED)]
    with file.open("rb") as content:
        for place in places:
            content.seek(place)
            crc = zlib.crc32(content.read(_BLOCK), crc)
    return [size, crc]


def remember(file: Path, text: str) -> None:
    """Write a small file into a folder of the cache. A folder that cannot be written stays without it."""
    try:
        partial = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        partial.write_text(text, "utf-8")
        partial.replace(file)
    except OSError as error:
        log.debug("%s is not kept: %s", file, error.strerror)


def key_of(*facts: Any) -> str:
    """The name of the folder for facts that JSON can write. Versions of the code count too."""
    text = json.dumps([_code(), *facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _code() -> str:
    """A hash of this package's code and of the versions of the libraries that make rows."""
    import tokenizers
    import transformers

    hasher = hashlib.sha256(f"{transformers.__version__} {tokenizers.__version__}".encode())
    for file in sorted(resources.files("apt_ds.data").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            hasher.update(file.read_bytes())
    return hasher.hexdigest()
