"""A tiny model whose projections can be quantized: sizes, expected errors, and what tests ask of its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM

from apt_ds.models import adapter, loading
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, block_slices

# rows are whole blocks of 64: two groups of 64 query columns, 4 x 64 neurons
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
# relative error of a random normal weight: NF4, int8
ERROR = {4: 0.11, 8: 0.01}

Loaded = tuple[LlamaForCausalLM, Anatomy]


def load(folder: Path, bits: int, dtype: torch.dtype = torch.float32, adapted: bool = True) -> Loaded:
    """Load a model with its eager attention.

    Args:
        folder: the model's folder.
        bits: 4, 8, or 16 for plain weights.
        dtype: of what is not quantized.
        adapted: attach adapters of rank 3 that do something.
    """
    model = loading.read_weights(str(folder), dtype, "eager", bits=bits)[0].eval()
    anatomy = anatomy_of(model.config)
    if adapted:
        adapter.attach(model, anatomy, ("q", "down"), rank=3, seed=1)
        torch.manual_seed(0)
        for _, module in adapter.adapters(model):
            module.lora_B.data.normal_(0, 0.02)
    return model, anatomy


def projections(model: nn.Module, anatomy: Anatomy) -> dict[str, nn.Linear]:
    """The linear layers of a model by path."""
    return {path: model.get_submodule(path) for name in PROJECTIONS for path in anatomy.targets[name]}


def first_blocks_go(anatomy: Anatomy) -> np.ndarray:
    """Blocks to keep, bool [blocks]: all but the first head or the first 64 neurons, whole blocks, of each sublayer."""
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        if site >= 0:
            keep[span.start : span.start + (1 if anatomy.kind(site) == "head" else 64)] = False
    return keep


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference as a fraction of the expected norm."""
    return ((actual - expected).norm() / expected.norm()).item()
