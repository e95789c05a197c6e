"""A finished model as its judges see it: any causal language model, whole on every rank or sharded over them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from apt_ds import dist, models, zero
from apt_ds.config import UserError
from apt_ds.ds_config import read_json
from apt_ds.export.modeling_apt_llama import AptLlamaConfig, AptLlamaForCausalLM

PROBES, PROBE_BYTES = 1024, 2**16

# our own class serves for folders with sizes by layer, so that nothing they carry is ever executed here
AutoConfig.register(AptLlamaConfig.model_type, AptLlamaConfig, exist_ok=True)
AutoModelForCausalLM.register(AptLlamaConfig, AptLlamaForCausalLM, exist_ok=True)


@dataclass
class Judged:
    """What is judged. `runner` is called for forward passes: `model` itself, or the engine that shards it."""

    source: str
    model: PreTrainedModel
    runner: nn.Module
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return zero.device()


def load(name: str, bf16: bool = False, deepspeed: str = "", attention: str = "sdpa") -> Judged:
    """The model `name` (a folder, a hub name or builtin:smollm2) in bfloat16 or float32, ready to run. Collective.

    deepspeed: the path of a DeepSpeed JSON; with ZeRO-3 the weights are sharded over ranks while they are read,
    with anything else every rank holds the whole model.

    Raises:
        UserError: no model or tokenizer there, broken weights, or a DeepSpeed file that is refused.
    """
    start_ranks(bool(deepspeed))
    models.quiet_transformers()
    config = serving_config(deepspeed, bf16) if deepspeed else {}
    source = models.source_of(name)
    try:
        AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--model {name!r}: no model and tokenizer there ({models.first_line(error)}); "
            f"give a folder made by save_pretrained, a hub name, or {models.BUILTIN}"
        ) from None
    sharding = zero.shard_while_loading(config)
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = models.read_weights(source, dtype, attention, flag="--model")[0].eval()
    runner = zero.serve(model, config) if sharding is not None else model.to(zero.device())
    del sharding
    return Judged(source, model, runner, tokenizer)


def start_ranks(needed: bool = False) -> None:
    """Join the other processes where a launcher started any, or where an engine needs a world of one."""
    if not dist.ready() and (needed or "RANK" in os.environ):
        zero.init_distributed()


def serving_config(path: str, bf16: bool) -> zero.Config:
    """What of a training run's DeepSpeed file matters to forward passes: its ZeRO section.

    Raises:
        UserError: no such file, not JSON, or refused by DeepSpeed.
    """
    section = read_json(path).get("zero_optimization", {})
    if not isinstance(section, dict):
        raise UserError(f"DeepSpeed config {path}: 'zero_optimization' must be an object, found {section!r}")
    kept = {key: value for key, value in section.items() if value != "auto" and key != "offload_optimizer"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": kept,
        "bf16": {"enabled": bf16},
        "fp16": {"enabled": False},
        "steps_per_print": 10**9,
    }
    zero.check_config(config, path)
    return config


def fingerprint(source: str) -> str:
    """A short hash of a model's configuration and weight files; of files above 64 MB, of 1,024 places in each."""
    config = cached_file(source, "config.json")
    folder = Path(str(config)).parent
    hasher = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=8)
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("tokenizer*.json")]):
        size = path.stat().st_size
        hasher.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(PROBE_BYTES, size // PROBES)):
                file.seek(start)
                hasher.update(file.read(PROBE_BYTES))
    return hasher.hexdigest()
