"""Reads what a model folder says of itself. Code of the folder runs only where the user has asked for it.

This package has classes of its own for models with sizes by layer. The import of `architectures` registers them, so
that an exported folder loads without its own copy of the class.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from apt_ds.models import architectures  # noqa: F401 -- registers the classes with sizes by layer
from apt_ds.models.model_folder import NeedsCodeError

T = TypeVar("T")
NAMES_CODE = ("auto_map", "custom_pipelines")  # fields of a configuration that name code of a folder
WRITABLE = (torch.float32, torch.bfloat16, torch.float16)
IN_FILES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def needs_code(error: Exception) -> bool:
    """Whether transformers would have run code of a folder."""
    return "trust_remote_code=True" in str(error)


def read_config(source: str, trust: bool = False) -> PretrainedConfig:
    """The configuration of a folder or hub name. trust: code of the folder may run.

    Raises:
        NeedsCodeError: it needs code of the folder, and `trust` is false.
        OSError, ValueError, KeyError: there is none, or it is broken.
    """
    config = _read("model", lambda: AutoConfig.from_pretrained(source, trust_remote_code=trust))
    return config if trust else without_code(config)


def read_tokenizer(source: str, trust: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name. Arguments and errors are those of `read_config`."""
    tokenizer = _read("tokenizer", lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=trust))
    if type(tokenizer).__module__.startswith("transformers."):
        # it would be written again and name code that this class does not need
        tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer


def _read(what: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except ValueError as error:
        # transformers has no class of its own for this one
        raise (NeedsCodeError(what) if needs_code(error) else error) from None


def without_code(config: PretrainedConfig) -> PretrainedConfig:
    """A copy that names no code of a folder."""
    config = copy.deepcopy(config)
    for name in NAMES_CODE:
        vars(config).pop(name, None)
    return config


def stated_dtype(source: str, config: PretrainedConfig) -> torch.dtype:
    """The dtype that a model is stored in: as its configuration says, else as its first weights are.

    float32 where neither says, and where it is a dtype that models are not written in.
    """
    stated = getattr(config, "dtype", None) or _dtype_of_file(source)
    return stated if stated in WRITABLE else torch.float32


def _dtype_of_file(source: str) -> torch.dtype | None:
    """The dtype of a weight file's first floating-point weight, None where no file can be read.

    A broken file is named where its weights are read.
    """
    try:
        index = _cached(source, "model.safetensors.index.json")
        names = json.loads(Path(index).read_text(encoding="utf8"))["weight_map"].values() if index else ()
        path = _cached(source, min(names, default="model.safetensors"))
        if path is not None:
            with Path(path).open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
            kinds = [entry["dtype"] for name, entry in header.items() if name != "__metadata__"]
            return next((IN_FILES[kind] for kind in kinds if kind in IN_FILES), None)
        path = _cached(source, "pytorch_model.bin")
        state = torch.load(path, map_location="meta", weights_only=True, mmap=True) if path else {}
        return next((value.dtype for value in state.values() if value.is_floating_point()), None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, UnpicklingError, struct.error):
        return None


def _cached(source: str, name: str) -> str | None:
    """The path of a file of a folder or hub name, None where there is none."""
    try:
        return cached_file(source, name)
    except OSError:
        return None
