"""Tensors of a checkpoint in files of bounded size. The rank that writes them holds at most one file's tensors."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

ENDING = ".safetensors"


class ShardWriter:
    """Writes tensors into `folder` as `NAME.safetensors`, `NAME-2.safetensors` and so on.

    `close` raises the first error of any file. Until then other ranks may go on sending tensors.

    Attributes:
        limit: bytes after which a file is full.
    """

    limit = 1 << 30

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._failure: OSError | SafetensorError | None = None
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._written: dict[str, int] = {}

    def add(self, name: str, key: str, tensor: Tensor) -> None:
        """Take a CPU tensor, which a file of the group `name` will hold under `key`."""
        if self._failure is not None:
            return
        waiting = self._waiting.setdefault(name, {})
        waiting[key] = tensor.contiguous()
        if sum(tensor.nbytes for tensor in waiting.values()) >= self.limit:
            self._write(name)

    def close(self) -> None:
        """Write the tensors that wait.

        Raises:
            OSError, SafetensorError: a file could not be written, now or before.
        """
        for name in self._waiting:
            self._write(name)
        if self._failure is not None:
            raise self._failure

    def _write(self, name: str) -> None:
        tensors, self._waiting[name] = self._waiting[name], {}
        if not tensors or self._failure is not None:
            return
        number = self._written[name] = self._written.get(name, 0) + 1
        try:
            self.folder.mkdir(exist_ok=True)
            save_file(tensors, self.folder / f"{name}{f'-{number}' if number > 1 else ''}{ENDING}")
        except (OSError, SafetensorError) as error:
            self._failure = error


def read(folder: Path, files: list[str]) -> dict[str, dict[str, Tensor]]:
    """Tensors by group and key, from those `files` of a folder that hold tensors. They are memory-mapped.

    Raises:
        OSError, SafetensorError: a file cannot be read.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for file in files:
        if file.endswith(ENDING):
            name = file.removesuffix(ENDING).partition("-")[0]
            groups.setdefault(name, {}).update(load_file(folder / file))
    return groups
