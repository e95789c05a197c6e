"""Tensors of a checkpoint in files of bounded size, so that whoever writes them never holds more than one file's."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

ENDING = ".safetensors"


class Parts:
    """Tensors on their way into `folder`: `name.safetensors`, `name-2.safetensors` and so on.

    What goes wrong is kept until `close`: other ranks, who send tensors meanwhile, must not wait in vain.
    limit: bytes after which a file is full.
    """

    limit = 1 << 30

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._failure: OSError | SafetensorError | None = None
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._written: dict[str, int] = {}

    def add(self, name: str, key: str, tensor: Tensor) -> None:
        """Take a tensor, on the host, which the file(s) `name` will hold under `key`."""
        if self._failure is not None:
            return
        waiting = self._waiting.setdefault(name, {})
        waiting[key] = tensor.contiguous()
        if sum(held.nbytes for held in waiting.values()) >= self.limit:
            self._write(name)

    def close(self) -> None:
        """Write what waits.

        Raises:
            OSError, SafetensorError: something could not be written, now or before.
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
    """Tensors by name and key, of those `files` of a folder that hold tensors. They are mapped, not read.

    Raises:
        OSError, SafetensorError: one cannot be read.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for file in files:
        if file.endswith(ENDING):
            name = file.removesuffix(ENDING).partition("-")[0]
            found.setdefault(name, {}).update(load_file(folder / file))
    return found
