"""Loading a base model, sharded while it loads if the engine will shard it.

The parts are `base` (configuration, tokenizer, blocks), `weights` (reading) and `room` (dtypes, sizes). Other packages
use them through this module.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models import quantization, task_heads
from apt_ds.models.architectures import architecture_of
from apt_ds.models.attention import kernel_of
from apt_ds.models.base import Base, find_base, task_type_for
from apt_ds.models.model_folder import first_line
from apt_ds.models.random_weights import random_model
from apt_ds.models.room import adapter_parameters, bytes_written, count_parameters, run_dtype, written_dtype
from apt_ds.models.weights import quiet_transformers, read_weights
from apt_ds.runtime import collectives, notices, zero

__all__ = [
    "Base",
    "adapter_parameters",
    "bytes_written",
    "count_parameters",
    "find_base",
    "first_line",
    "load_model",
    "quiet_transformers",
    "read_weights",
    "run_dtype",
    "task_type_for",
    "written_dtype",
]


def load_model(base: Base, run: RunConfig) -> PreTrainedModel:
    """Load the base model in the run's dtype, on this rank's device. Collective.

    Under ZeRO-3 the caller keeps `zero.shard_while_loading` alive, and weights are partitioned as they are read. A
    base in 4 or 8 bits is quantized as it is read, and the engine partitions it.

    Raises:
        UserError: weights are absent, broken or do not fit the configuration, or the attention kernel is missing.
    """
    quiet_transformers()
    if vars(base.config).get("quantization_config"):
        raise UserError(
            f"--model_name_or_path {run.model.model_name_or_path!r} is quantized already. "
            "Give the model it was made from"
        )
    dtype, spec = run_dtype(run), architecture_of(base.config)
    attention = spec.attention(base.config, kernel_of(run, zero.device().type))
    missing: list[str] = []
    if base.random:
        projections = {path for paths in base.anatomy.targets.values() for path in paths}
        try:
            model = random_model(base.config, dtype, attention, projections, run.model.base_bits)
        except ImportError as error:
            raise UserError(f"--attn_implementation {attention}: {first_line(error)}") from None
    else:
        model, missing = read_weights(
            base.source,
            dtype,
            attention,
            base.task_type,
            spec.task_heads.get(base.task_type, ()),
            base.config,
            bits=run.model.base_bits,
            model_class=spec.training_classes.get(base.task_type),
            plain=quantization.plain_layers(base.anatomy),
            device=zero.device(),
        )
    if missing:
        start_heads(model, missing, run.optim.seed)
    spec.prepare(model, base.anatomy)
    model.config.use_cache = False
    if not zero.is_partitioned(model):
        _off_the_file(model)
        nn.Module.to(model, zero.device())
    if run.model.base_bits < 16:
        # reading leaves a copy of 4-bit weights in reference cycles, and about as much in holes of the host's heap
        zero.free_memory()
    if run.optim.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def start_heads(model: PreTrainedModel, paths: list[str], seed: int) -> None:
    """Draw the weights that a checkpoint lacks for the task, and print their paths. Collective."""
    task_heads.start(model, paths, model.config.initializer_range, seed)
    if collectives.is_main():
        notices.warn(f"{', '.join(paths)}: not in the checkpoint, initialized at random")


def _off_the_file(model: nn.Module) -> None:
    """Copy weights that are mapped from a file. One mapped weight keeps the whole file in memory, after cuts too.

    Only weights of the CPU are mapped. An accelerator has copies already.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
