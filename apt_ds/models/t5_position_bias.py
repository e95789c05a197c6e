"""T5's relative position bias follows its heads: an attention that has lost heads picks its own from the whole table.

A stack computes the bias once, in its first layer, and hands it to all others; heads that one layer has lost another
may still have. Stock T5 runs with an attention kernel of this name: transformers' own behind one indexing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.t5.modeling_t5 import eager_attention_forward

from apt_ds.models.blocks import Anatomy

KERNEL = "apt_by_head"


def attend(module: nn.Module, *tensors: Any, position_bias: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """T5's attention with the bias of the heads that `module` still has. position_bias: [1, heads, queries, keys]"""
    if position_bias.shape[1] != len(module.heads):
        position_bias = position_bias.index_select(1, module.heads)
    return eager_attention_forward(module, *tensors, position_bias=position_bias, **options)


AttentionInterface.register(KERNEL, attend)
AttentionMaskInterface.register(KERNEL, eager_mask)


def prepare(model: nn.Module, anatomy: Anatomy) -> None:
    """Let every attention with a position bias know its heads: all of them."""
    for site, count in zip(anatomy.sites, anatomy.sizes.counts, strict=True):
        if site.position_bias:
            attention = model.get_submodule(site.position_bias)
            device = attention.o.weight.device
            attention.register_buffer("heads", torch.arange(count, device=device), persistent=False)
    if any(site.position_bias for site in anatomy.sites):
        model.set_attn_implementation(KERNEL)


def follow(model: nn.Module, path: str, kept: Tensor) -> None:
    """After a cut: `kept`, int64, are those of the attention's heads that are left."""
    attention = model.get_submodule(path)
    attention.heads = attention.heads[kept.to(attention.heads.device)]
