"""Loads a finished model for evaluation, whole on every rank or sharded over ranks."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

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
from apt_ds.models.model_folder import check_files, check_head, check_weights, read_part
from apt_ds.runtime import collectives, launch_variables, zero

SAMPLES, SAMPLE_BYTES = 1024, 2**16  # of a file in `fingerprint`
CLASS_ENDINGS = {
    "ForCausalLM": LANGUAGE_MODEL,
    "ForSequenceClassification": CLASSIFICATION,
    "ForQuestionAnswering": ANSWERS,
    "ForConditionalGeneration": GENERATION,
}


@dataclass
class LoadedModel:
    """A model ready for forward passes.

    Attributes:
        source: Its folder or hub name.
        model: The model, in eval mode.
        runner: What to call for a forward pass: `model` itself, or the engine that shards it.
        tokenizer: Its tokenizer.
    """

    source: str
    model: PreTrainedModel
    runner: nn.Module
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        """The device of inputs."""
        return zero.device()


def load(
    name: str,
    bf16: bool = False,
    deepspeed: str = "",
    attention: str = "sdpa",
    task_type: str = LANGUAGE_MODEL,
    fresh_head: bool = False,
    trust: bool = False,
) -> LoadedModel:
    """Load a model for evaluation. Collective.

    Args:
        name: A folder, a hub name or a builtin model.
        bf16: Load in bfloat16 instead of float32.
        deepspeed: Path of a DeepSpeed JSON. ZeRO-3 shards the weights over ranks while they are read. With any other
            stage every rank has the whole model.
        attention: The attention kernel, as transformers names it.
        task_type: The task type of its head, see `task_type_of`.
        fresh_head: Give a model without a head for the task a random one. Only its cost is then meaningful.
        trust: Allow code of the folder to run. Models that this package exports with sizes by layer need none.

    Raises:
        UserError: Model or tokenizer are missing, weights are broken, or DeepSpeed refuses its JSON.
    """
    start_ranks(bool(deepspeed))
    loading.quiet_transformers()
    engine = read_inference_config(deepspeed, bf16) if deepspeed else {}
    source, config = read_config(name, trust)
    check_weights(source, f"--model {name!r}")
    tokenizer = read_part(lambda: pretrained.read_tokenizer(source, trust), *error_context(name))
    sharding = zero.shard_while_loading(engine)
    dtype = torch.bfloat16 if bf16 else torch.float32
    spec = find_architecture(config)
    attention = attention if spec is None else spec.attention(config, attention)
    optional = spec.task_heads.get(task_type, ()) if fresh_head and spec is not None else ()
    model, _ = loading.read_weights(
        source, dtype, attention, task_type, optional, flag="--model", trust=trust, device=zero.device()
    )
    model.eval()
    runner: nn.Module = model
    if sharding is not None:
        runner = zero.build_for_inference(model, engine)
    else:
        move(model, zero.device())
    del sharding
    return LoadedModel(source, model, runner, tokenizer)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device. The parameter type hides the untyped decorator of `PreTrainedModel.to`."""
    model.to(device)


def read_config(name: str, trust: bool = False) -> tuple[str, PretrainedConfig]:
    """Find a model and read its configuration. Collective.

    Args:
        name: A folder, a hub name or a builtin model.
        trust: Allow code of the folder to run.

    Returns:
        The folder or hub name for `from_pretrained`, and the configuration.

    Raises:
        UserError: The configuration is missing, or needs code of its folder without `trust`.
    """
    source = builtin_models.source_of(name)
    check_files(source, f"--model {name!r}")
    config = read_part(lambda: pretrained.read_config(source, trust), *error_context(name))
    check_ids(config)
    check_head(config, f"--model {name!r}")
    return source, config


def error_context(name: str) -> tuple[str, str]:
    """The flag and the advice of an error about the model `name`."""
    return f"--model {name!r}", f"give a folder made by save_pretrained, a hub name, or {builtin_models.NAMES}"


def task_type_of(config: PretrainedConfig) -> str:
    """The task type of a model, from the class in its configuration, or else the first of its architecture."""
    class_name = (config.architectures or [""])[0]
    for ending, task_type in CLASS_ENDINGS.items():
        if class_name.endswith(ending):
            return task_type
    spec = find_architecture(config)
    return spec.first_task_type if spec is not None else LANGUAGE_MODEL


def start_ranks(needed: bool = False) -> None:
    """Initialise torch.distributed if a launcher started this process, or if an engine needs a world of one.

    Args:
        needed: Whether an engine needs it.
    """
    # DeepSpeed needs the variables of a launcher in a caller's own group too
    joined = collectives.ready() and launch_variables.launched()
    if not joined and (needed or os.environ.get("RANK")):
        zero.init_distributed()


def read_inference_config(path: str, bf16: bool) -> zero.Config:
    """A DeepSpeed configuration for forward passes: the ZeRO section of a run's JSON.

    Raises:
        UserError: The file is missing, is not JSON, or DeepSpeed refuses it.
    """
    zero.check_sections(path, trains=False)
    section = read_json(path).get("zero_optimization", {})
    if not isinstance(section, dict):
        raise UserError(f"DeepSpeed config {path}: 'zero_optimization' must be an object, found {section!r}")
    config = zero.inference_config(section, {"bf16": {"enabled": bf16}, "fp16": {"enabled": False}})
    zero.check_config(config, path)
    return config


def fingerprint(source: str) -> str:
    """A short hash of a model's configuration, weight and tokenizer files.

    Of files above 64 MB it covers 1,024 samples of 64 KB, evenly spread.
    """
    config = cached_file(source, "config.json")
    folder = Path(str(config)).parent
    hasher = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=8)
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("tokenizer*.json")]):
        size = path.stat().st_size
        hasher.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                file.seek(start)
                hasher.update(file.read(SAMPLE_BYTES))
    return hasher.hexdigest()
