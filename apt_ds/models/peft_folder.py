"""Reads a LoRA in a PEFT folder, and refuses what a low-rank sum on linear layers cannot compute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from apt_ds.config.errors import UserError
from apt_ds.models.model_folder import first_line
from apt_ds.models.peft_format import CONFIG, OLD_WEIGHTS, PREFIX, WEIGHTS, read_json

LORA = re.compile(r"(?P<path>.*)\.lora_(?P<part>[AB])(\.default)?\.weight")
WHOLE = re.compile(r"\.(modules_to_save|original_module)(\.default)?(?=\.)")
# options of PEFT under which a layer computes more than W + f B A, or the base is another one
REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "lora_bias",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layer_replication",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
    "fan_in_fan_out": "fan_in_fan_out",
}
KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")  # values of init_lora_weights


@dataclass(frozen=True)
class PeftFolder:
    """A LoRA.

    Attributes:
        pairs: path in PEFT's base to A [r, in], B [out, r] and the factor f of B A, fp32.
        whole: name to value of the parameters that were trained whole.
    """

    pairs: dict[str, tuple[Tensor, Tensor, float]]
    whole: dict[str, Tensor]


def read_folder(folder: Path, where: str) -> PeftFolder:
    """Read a PEFT folder.

    Args:
        folder: the folder.
        where: names it in an error.

    Raises:
        UserError: it is no PEFT folder, is broken, or has no plain LoRA.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{where} is not a PEFT folder: {CONFIG} is missing")
    config = read_json(folder / CONFIG)
    _check_config(config, where)
    halves: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, value in _tensors(folder, where).items():
        name = name.removeprefix(PREFIX)
        if match := LORA.fullmatch(name):
            halves.setdefault(match["path"], {})[match["part"]] = value.float()
        elif ".lora_" in name:
            raise UserError(f"{where} has the weight {name}, which is not of a LoRA on a linear layer: not supported")
        else:
            whole[WHOLE.sub("", name)] = value
    if not halves:
        raise UserError(f"{where} has no LoRA weights")
    pairs = {path: _pair(config, path, own, where) for path, own in halves.items()}
    return PeftFolder(pairs, whole)


def _check_config(config: Mapping[str, Any], where: str) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"{where} is of the type {config.get('peft_type')!r}: only LORA is supported")
    for name, title in REFUSED.items():
        if config.get(name):
            raise UserError(f"{where} uses {title} ({name}), which is not supported: merge it into the base first")
    if config.get("bias", "none") != "none":
        raise UserError(f"{where} has trained biases (bias {config['bias']!r}), which is not supported")
    drawn = config.get("init_lora_weights", True)
    if drawn not in KEEPS_BASE:
        raise UserError(
            f"{where} was started with init_lora_weights {drawn!r}, which changes the base: convert it to a plain LoRA "
            "with PEFT's path_initial_model_for_weight_conversion"
        )


def _tensors(folder: Path, where: str) -> dict[str, Tensor]:
    try:
        if (folder / WEIGHTS).is_file():
            return load_file(folder / WEIGHTS)
        if (folder / OLD_WEIGHTS).is_file():
            return dict(torch.load(folder / OLD_WEIGHTS, map_location="cpu", weights_only=True))
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise UserError(f"{where}: its weights cannot be read: {first_line(error)}") from None
    raise UserError(f"{where} has no weights: neither {WEIGHTS} nor {OLD_WEIGHTS}")


def _pair(config: Mapping[str, Any], path: str, own: Mapping[str, Tensor], where: str) -> tuple[Tensor, Tensor, float]:
    if own.keys() != {"A", "B"}:
        raise UserError(f"{where} is incomplete: {path} has only lora_{next(iter(own))}")
    a, b = own["A"], own["B"]
    if a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1]:
        raise UserError(f"{where} is not a LoRA of linear layers: {path} has the shapes {[*a.shape]} and {[*b.shape]}")
    rank = _of_pattern(config, "rank_pattern", path, config.get("r", 8))
    alpha = _of_pattern(config, "alpha_pattern", path, config.get("lora_alpha", 8))
    if rank != len(a):
        raise UserError(f"{where} contradicts itself: {path} has rank {len(a)}, {CONFIG} says {rank}")
    return a, b, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _of_pattern(config: Mapping[str, Any], name: str, path: str, usual: Any) -> Any:
    """The value of the first pattern that the end of a path matches, as PEFT looks it up."""
    patterns = config.get(name) or {}
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), usual)
