"""Checks of a model's folder before its weights are read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.activations import ACT2FN

from apt_ds.config.errors import UserError

T = TypeVar("T")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_decoder_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings"),
    *("d_model", "d_kv", "d_ff", "num_layers", "num_heads"),  # as T5 calls them
    *("hidden_dim", "embedding_size"),
)
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation")
SMALL = (".json", ".model", ".txt", ".jinja")  # endings of what a configuration and a tokenizer are read from
HEADER = 8  # bytes of a safetensors file that state the length of its header


class NeedsCodeError(ValueError):
    """Only code of the folder can read it, and the user has not allowed that code to run."""

    def __init__(self, what: str) -> None:
        super().__init__(f"its {what} needs code of its own: read that code, then give --trust_remote_code to run it")


def read_part(read: Callable[[], T], where: str, advice: str) -> T:
    """Read a folder's configuration or tokenizer with `read`.

    Args:
        read: reads it.
        where: the flag and the folder, for the error.
        advice: the advice of the error.

    Raises:
        UserError: `read` fails. A broken file can make another library's parser raise anything.
    """
    try:
        return read()
    except UserError:
        raise
    except NeedsCodeError as error:
        raise UserError(f"{where}: {error}") from None
    except StrictDataclassError as error:
        raise UserError(f"{where}: its config.json is not valid: {' '.join(str(error).split())}") from None
    except Exception as error:
        raise UserError(f"{where}: no model and tokenizer there ({first_line(error)}); {advice}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_files(source: str, where: str) -> None:
    """Check a folder's small files. A hub name is not checked.

    Raises:
        UserError: a file is a Git LFS pointer, or config.json is no object or has a size below 1.
    """
    folder = Path(source)
    if not os.path.isdir(folder):
        return
    # weights of another format may stay pointers: nothing reads them
    for path in sorted(path for path in folder.iterdir() if path.suffix in SMALL and path.is_file()):
        _check_pointer(path, where)
    if (folder / "config.json").is_file():
        config = _json(folder / "config.json", where)
        if not isinstance(config, dict):
            raise UserError(f"{where}: no model and tokenizer there: config.json is not a JSON object")
        # transformers divides by some of these before anything else can look at them
        _check_positive(config, where)


def check_weights(source: str, where: str) -> None:
    """Check that a folder's weight files are complete. A hub name is not checked.

    Raises:
        UserError: no weights, a file of the index is absent, or a safetensors file is shorter than its header says.
    """
    folder = Path(source)
    if not os.path.isdir(folder):
        return
    unread = f"{where}: its weights cannot be read"
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf"))
        have = f". The folder has {', '.join(others[:3])}, which is not read" if others else ""
        raise UserError(f"{unread}: no file named {', '.join(WEIGHTS[:3])} or {WEIGHTS[3]}{have}")
    files = [file]
    if file.suffix == ".json":
        index = _json(file, where)
        named = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(named, dict) or not named:
            raise UserError(f"{unread}: {file.name} has no object 'weight_map'")
        files = [folder / str(name) for name in dict.fromkeys(named.values())]
        absent = [path.name for path in files if not path.is_file()]
        if absent:
            raise UserError(
                f"{unread}: {file.name} names {len(files)} files. {len(absent)} are absent, such as {absent[0]}"
            )
    for path in files:
        _check_pointer(path, where)
        if path.suffix == ".safetensors" and (problem := _problem(path)):
            raise UserError(f"{unread}: {path.name} {problem}. Download or copy it again")


def check_sizes(config: PretrainedConfig, where: str) -> None:
    """Check the numbers of a configuration that no model can be made of.

    Raises:
        UserError: a size below 1, heads that do not share the hidden size or the key/value heads evenly, or an
            unknown activation. The message names the field.
    """
    values = {name: getattr(config, name, None) for name in SIZES}
    _check_positive(values, where)
    heads, groups, hidden = (values[name] for name in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise UserError(
            f"{where}: its config.json has {heads} num_attention_heads, no multiple of its {groups} key/value heads"
        )
    if isinstance(heads, int) and isinstance(hidden, int) and values["head_dim"] is None and hidden % heads:
        raise UserError(
            f"{where}: its config.json has hidden_size {hidden}, no multiple of its {heads} num_attention_heads"
        )
    for name in ACTIVATIONS:
        activation = getattr(config, name, None)
        if isinstance(activation, str) and activation not in ACT2FN:
            raise UserError(f"{where}: {name} {activation!r} of its config.json is unknown to transformers")


def check_head(config: PretrainedConfig, where: str) -> None:
    """Check that the head of a model may answer a task, or be replaced by one that does.

    Raises:
        UserError: the head chooses among several texts.
    """
    name = (config.architectures or [""])[0]
    if name.endswith("ForMultipleChoice"):
        raise UserError(
            f"{where} has a multiple-choice head ({name}), which no task uses; give the encoder that it was made from"
        )


def _check_positive(values: dict[str, Any], where: str) -> None:
    for name in SIZES:
        value = values.get(name)
        if isinstance(value, int) and value < 1:
            raise UserError(f"{where}: {name} of its config.json is {value}. It must be at least 1")


def _check_pointer(path: Path, where: str) -> None:
    """Raise UserError for what Git leaves in place of a large file that it has not fetched."""
    try:
        with path.open("rb") as file:
            pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError as error:
        raise UserError(f"{where}: {path.name} cannot be read: {error.strerror}") from None
    if pointer:
        raise UserError(
            f"{where}: {path.name} is a Git LFS pointer instead of the file itself. Run `git lfs pull` in {path.parent}"
        )


def _json(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{where}: {path.name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no model and tokenizer there: {path.name} is not valid JSON: {error}") from None


def _problem(path: Path) -> str:
    """The defect of a safetensors file, by its header and its size. '': none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(HEADER)
        length = struct.unpack("<Q", start)[0] if len(start) == HEADER else size
        if length > size - HEADER:
            return f"is truncated or no safetensors file ({size} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "has a header that is not of a safetensors file"
    expected = HEADER + length + max(ends, default=0)
    return f"is truncated: {size} bytes of {expected}" if size < expected else ""
