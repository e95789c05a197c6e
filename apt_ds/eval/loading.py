"""A finished model as its judges see it: a task's model, whole on every rank or sharded over them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from apt_ds.config.deepspeed_json import read_json
from apt_ds.config.errors import UserError
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.data.tokenizer_checks import check_ids
from apt_ds.models import builtin_models, loading, pretrained
from apt_ds.models.architectures import find_architecture
from apt_ds.models.model_folder import check_files, check_weights, read_part
from apt_ds.runtime import collectives, zero

PROBES, PROBE_BYTES = 1024, 2**16
ENDINGS = {
    "ForCausalLM": LANGUAGE_MODEL,
    "ForSequenceClassification": CLASSIFICATION,
    "ForQuestionAnswering": ANSWERS,
    "ForConditionalGeneration": GENERATION,
}


@dataclass
class LoadedModel:
    """What is judged. `runner` is called for forward passes: `model` itself, or the engine that shards it."""

    source: str
    model: PreTrainedModel
    runner: nn.Module
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return zero.device()


def load(
    name: str,
    bf16: bool = False,
    deepspeed: str = "",
    attention: str = "sdpa",
    task: str = LANGUAGE_MODEL,
    fresh_head: bool = False,
    trust: bool = False,
) -> LoadedModel:
    """The model `name` (a folder, a hub name or a builtin) in bfloat16 or float32, ready to run. Collective.

    deepspeed: the path of a DeepSpeed JSON; with ZeRO-3 the weights are sharded over ranks while they are read,
    with anything else every rank holds the whole model.
    task: what is asked of it, a constant of `config/tasks.py` (see `task_of`).
    fresh_head: a model without the task's head gets a random one; its answers then mean nothing, its costs do.
    trust: code of the folder may run. This package's own models with sizes by layer need none.

    Raises:
        UserError: no model or tokenizer there, broken weights, or a DeepSpeed file that is refused.
    """
    start_ranks(bool(deepspeed))
    loading.quiet_transformers()
    engine = serving_config(deepspeed, bf16) if deepspeed else {}
    source, config = described(name, trust)
    check_weights(source, f"--model {name!r}")
    tokenizer = read_part(lambda: pretrained.read_tokenizer(source, trust), *blame(name))
    sharding = zero.shard_while_loading(engine)
    dtype = torch.bfloat16 if bf16 else torch.float32
    spec = find_architecture(config)
    allowed = spec.heads.get(task, ()) if fresh_head and spec is not None else ()
    model, _ = loading.read_weights(source, dtype, attention, task, allowed, flag="--model", trust=trust)
    model.eval()
    runner = zero.build_for_inference(model, engine) if sharding is not None else model.to(zero.device())
    del sharding
    return LoadedModel(source, model, runner, tokenizer)


def described(name: str, trust: bool = False) -> tuple[str, PretrainedConfig]:
    """What `from_pretrained` reads for `name`, and the configuration that is there. Collective.

    Raises:
        UserError: there is none, or it needs code of its folder and `trust` is false.
    """
    source = builtin_models.source_of(name)
    check_files(source, f"--model {name!r}")
    config = read_part(lambda: pretrained.read_config(source, trust), *blame(name))
    check_ids(config)
    return source, config


def blame(name: str) -> tuple[str, str]:
    """What an error says of a name that leads nowhere: the flag with it, and what to give instead."""
    return f"--model {name!r}", f"give a folder made by save_pretrained, a hub name, or {builtin_models.NAMES}"


def task_of(config: PretrainedConfig) -> str:
    """What a model is for, by the class its configuration names; without one, what its architecture is first for."""
    named = (config.architectures or [""])[0]
    for ending, task in ENDINGS.items():
        if named.endswith(ending):
            return task
    spec = find_architecture(config)
    return spec.first_task_type if spec is not None else LANGUAGE_MODEL


def start_ranks(needed: bool = False) -> None:
    """Join the other processes where a launcher started any, or where an engine needs a world of one."""
    if not collectives.ready() and (needed or "RANK" in os.environ):
        zero.init_distributed()


def serving_config(path: str, bf16: bool) -> zero.Config:
    """What of a training run's DeepSpeed file matters to forward passes: its ZeRO section.

    Raises:
        UserError: no such file, not JSON, or refused by DeepSpeed.
    """
    zero.check_sections(path, trains=False)
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
