"""One hash over the weights that a model folder stores, by which adapters know their base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from apt_ds.config.errors import UserError
from apt_ds.models.model_folder import WEIGHTS, first_line
from apt_ds.runtime import collectives


def fingerprint_of_source(source: str, where: str) -> str:
    """A hash of names, dtypes, shapes and bits of all stored weights. It does not depend on files and their order.

    Args:
        source: a folder or hub name.
        where: names the model in an error.

    Raises:
        UserError: the weights cannot be read.
    """
    digests = {}
    try:
        for name, tensor in stored_tensors(source):
            content = hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            digests[name] = (str(tensor.dtype), tuple(tensor.shape), content.hexdigest())
    except (OSError, ValueError, SafetensorError, UnpicklingError, RuntimeError, LookupError) as error:
        raise UserError(f"{where}: its weights cannot be read: {first_line(error)}") from None
    return collectives.digest(sorted(digests.items()))


def stored_tensors(source: str) -> Iterator[tuple[str, Tensor]]:
    """(name, CPU tensor) of all weights of a folder or hub name, one tensor in memory at a time.

    Raises:
        OSError: the folder or the cache has no weights.
    """
    for path in _files(source):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 -- the file is no mapping
                    yield name, file.get_tensor(name)
        else:
            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()


def _files(source: str) -> list[Path]:
    file = next((path for name in WEIGHTS if (path := _cached(source, name))), None)
    if file is None:
        raise FileNotFoundError(f"no file named {WEIGHTS[0]}")
    if file.suffix != ".json":
        return [file]
    names = sorted(set(json.loads(file.read_text(encoding="utf8"))["weight_map"].values()))
    paths = [_cached(source, name) for name in names]
    return [path for path in paths if path is not None]


def _cached(source: str, name: str) -> Path | None:
    """The path of a file of a folder or hub name, None where there is none."""
    try:
        path = cached_file(source, name)
    except OSError:
        return None
    return Path(path) if path else None
