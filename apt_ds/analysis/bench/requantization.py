"""The error of cutting quantized weights: dequantize, slice and quantize again, against slicing before quantizing once.

A run with a quantized base has no other weights to slice first. Here the model is read in the dtype of the run. Each
projection goes both ways, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from apt_ds.analysis.bench.generation import drawn
from apt_ds.config.run_config import RunConfig
from apt_ds.models import loading, quantization
from apt_ds.models.loading import Base
from apt_ds.pruning.surgery import element_index, take

Errors = dict[str, float]


@torch.no_grad()
def rounding(run: RunConfig, base: Base, sparsity: float, bits: int) -> Errors:
    """Errors relative to the sliced original, over the projections that are cut.

    Args:
        run: The options.
        base: The model.
        sparsity: The removed fraction of the prunable parameters.
        bits: The bits of a quantized weight.

    Returns:
        The mean error of a run's weights after its cut (`cut`), and that of the sliced original, quantized once
        (`sliced_first`). The same keys with `_max` have the largest error.
    """
    run = run.replace(base_bits=bits, gradient_checkpointing=False)
    errors = list(pairs(run, base, loading.load_model(base, run.replace(base_bits=16)), sparsity))
    summary: Errors = {}
    for name, values in zip(("cut", "sliced_first"), zip(*errors, strict=True), strict=True):
        summary |= {name: sum(values) / len(values), f"{name}_max": max(values)}
    return summary


def pairs(run: RunConfig, base: Base, model: nn.Module, sparsity: float) -> Iterator[tuple[float, float]]:
    """(cut, sliced_first) of each projection that loses something."""
    anatomy, dtype = base.anatomy, loading.run_dtype(run)
    keep = drawn(run, base, sparsity)
    projections = {path for paths in anatomy.targets.values() for path in paths}
    for slot in anatomy.slots:
        rows, columns = (element_index(axis, keep, anatomy) for axis in (slot.rows, slot.columns))
        if slot.path not in projections or (rows is None and columns is None):
            continue
        original = model.get_parameter(f"{slot.path}.weight")
        expected = take(original.float(), rows, columns)
        quantized = quantization.pack(original, run.model.base_bits, dtype)
        # as `surgery` does it
        cut = quantization.requantize_like(quantized, take(quantization.dense(quantized, torch.float32), rows, columns))
        yield _error(cut, expected), _error(quantization.pack(expected, run.model.base_bits, dtype), expected)


def _error(quantized: nn.Parameter, expected: Tensor) -> float:
    return float((quantization.dense(quantized, torch.float32) - expected).norm() / expected.norm())
