"""The dtypes of a run's weights, and how many parameters and bytes a run trains and writes."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from apt_ds.config.output_options import PADDED
from apt_ds.config.run_config import RunConfig
from apt_ds.models import quantization
from apt_ds.models.base import Base
from apt_ds.runtime import zero


def run_dtype(run: RunConfig) -> torch.dtype:
    """The dtype of weights and activations during the run."""
    return torch.bfloat16 if run.optim.bf16 else torch.float16 if run.optim.fp16 else torch.float32


def written_dtype(base: Base, run: RunConfig) -> torch.dtype:
    """The dtype of the exported weights: that of a run in bf16 or fp16, else the base model's own."""
    return run_dtype(run) if run.optim.bf16 or run.optim.fp16 else base.dtype or torch.float32


def bytes_written(base: Base, run: RunConfig) -> int:
    """Estimated bytes that a run writes at least: one checkpoint, and the model at the end."""
    width = base.anatomy.sizes.hidden * base.config.vocab_size * (1 if base.config.tie_word_embeddings else 2)
    pruned = run.pruning.prunes and run.output.export_format != PADDED
    kept = base.anatomy.num_parameters(base.anatomy.sizes) * (1 - run.pruning.sparsity * pruned)
    model = (kept + width) * written_dtype(base, run).itemsize
    trained = (
        base.anatomy.num_parameters(base.anatomy.sizes) + width
        if run.optim.trainable == "all"
        else adapter_parameters(base, run)
    )
    # --export_adapters writes the base again if the run cuts it, and the adapters
    unmerged = (model * pruned + 4 * trained) * run.output.export_adapters
    # a checkpoint has the trained values and two moments, in float32
    return int(model + unmerged + 3 * 4 * trained)


def adapter_parameters(base: Base, run: RunConfig) -> int:
    """Number of parameters of the run's adapters at their initial rank, on the model before any cut."""
    paths = {path for name in run.targets for path in base.anatomy.targets.get(name, ())}
    counts = [*base.anatomy.sizes.counts, base.anatomy.sizes.hidden]
    widths = [
        counts[axis.site] * axis.unit
        for slot in base.anatomy.slots
        if slot.path in paths
        for axis in (slot.rows, slot.columns)
        if axis is not None
    ]
    return run.adapter.rank * sum(widths)


def count_parameters(model: PreTrainedModel, export_bits: int = 16, dtype: torch.dtype | None = None) -> dict[str, int]:
    """Count the parameters of the model as it will be exported, with adapters merged.

    Args:
        model: the model, partitioned or not.
        export_bits: bits of quantized weights in the folder, 16 for a plain folder.
        dtype: dtype of plain weights in the folder. None: their own.

    Returns:
        `parameters`, `parameters_without_embeddings`, and the bytes of the weights as `checkpoint_bytes`.
    """
    own = {id(p): p for name, p in model.named_parameters() if not name.rpartition(".")[2].startswith("lora_")}
    total = sum(zero.full_numel(p) for p in own.values())
    embeddings: list[nn.Module | None] = [model.get_input_embeddings(), model.get_output_embeddings()]
    ends = {id(p): p for p in (e.get_parameter("weight") for e in embeddings if e is not None)}
    return {
        "parameters": total,
        "parameters_without_embeddings": total - sum(zero.full_numel(p) for p in ends.values()),
        "checkpoint_bytes": sum(
            quantization.written_bytes(p, zero.full_numel(p), export_bits, dtype) for p in own.values()
        ),
    }
