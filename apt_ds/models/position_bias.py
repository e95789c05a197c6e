"""Heads of a relative position bias: an attention that shares a whole bias table knows which heads it has left."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apt_ds.models.blocks import Anatomy


def number_heads(model: nn.Module, anatomy: Anatomy) -> None:
    """Give every attention with a position bias a buffer `heads`, int64: all of its heads."""
    for site, count in zip(anatomy.sites, anatomy.sizes.counts, strict=True):
        if site.position_bias:
            device = next(model.get_submodule(site.consumer).parameters()).device
            attention = model.get_submodule(site.position_bias)
            attention.register_buffer("heads", torch.arange(count, device=device), persistent=False)


def heads_of(attention: nn.Module) -> Tensor:
    """The heads of the bias table that an attention has, int64, ascending."""
    return attention.get_buffer("heads")


def follow(model: nn.Module, path: str, kept: Tensor) -> None:
    """Record a cut of an attention. kept: int64, the indices of the heads that remain, among those before the cut."""
    attention = model.get_submodule(path)
    heads = heads_of(attention)
    attention.register_buffer("heads", heads[kept.to(heads.device)], persistent=False)
