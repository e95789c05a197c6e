"""The small files of a model folder that is to be written as GGUF: config.json and tokenizer.json, checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError

REQUIRED = ("num_hidden_layers", "num_attention_heads", "hidden_size")
NUMBERS = (*REQUIRED, "head_dim", "max_position_embeddings")
# numbers that only plans with sizes or scales of their own read. Other families may have lists there
OWN_NUMBERS = (
    *("num_key_value_heads", "intermediate_size", "query_pre_attn_scalar"),
    *("residual_multiplier", "embedding_multiplier", "attention_multiplier", "logits_scaling"),
)
OBJECTS = ("rope_parameters", "rope_scaling")
LISTS = ("layer_types", "no_rope_layers", "layer_intermediate_sizes", "layer_key_value_heads")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        UserError: the folder lacks it or tokenizer.json, or it names no model class.
    """
    config = _read(folder, "config.json", f"{folder} is not a model folder: it has no config.json")
    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UserError(f"{folder / 'config.json'} names no model class in 'architectures'")
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json, which the GGUF file must contain")
    return config


def check_values(folder: Path, config: dict[str, Any], own: bool) -> None:
    """Check the types of what a plan reads.

    Args:
        folder: the model folder, for messages.
        config: its config.json.
        own: whether the family's plan reads `OWN_NUMBERS`.

    Raises:
        UserError: a value is absent, or has the wrong type.
    """
    absent = [name for name in REQUIRED if config.get(name) is None]
    if absent:
        raise UserError(f"{config['architectures'][0]} is not written as GGUF: its config.json has no {absent[0]}")
    numbers = (*NUMBERS, *(OWN_NUMBERS if own else ()))
    for name, value in config.items():
        if value is not None and (expected := _expected(name, value, numbers)):
            raise UserError(f"{folder / 'config.json'}: {name!r} is {str(value)[:40]!r}. It must be {expected}")


def _expected(name: str, value: Any, numbers: Sequence[str]) -> str:
    """What a value must be if it is something else, else ''."""
    if name in numbers and not (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
        return "a number above 0"
    if name in OBJECTS and not isinstance(value, dict):
        return "an object"
    return "a list" if name in LISTS and not isinstance(value, list) else ""


def added_tokens(folder: Path) -> set[str]:
    """The added tokens of tokenizer.json.

    Raises:
        UserError: the file cannot be read, or is no tokenizer.
    """
    tokenizer = _read(folder, "tokenizer.json", f"{folder} has no tokenizer.json")
    entries = (tokenizer.get("added_tokens") or []) if isinstance(tokenizer, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "content" in entry for entry in entries):
        raise UserError(f"{folder / 'tokenizer.json'} has no list of tokens in 'added_tokens'")
    return {str(entry["content"]) for entry in entries}


def _read(folder: Path, name: str, absent: str) -> Any:
    """The value in a JSON file. absent: the message where there is no file, without its end."""
    try:
        return json.loads((folder / name).read_text(encoding="utf8"))
    except OSError:
        raise UserError(f"{absent} that can be read") from None
    except (ValueError, RecursionError):
        raise UserError(f"{folder / name} is not JSON. Download or copy it again") from None
