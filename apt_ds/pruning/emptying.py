"""Sublayers that lose all their blocks (METHOD.md section 4). Only the bias of the last linear layer remains.

Weights without elements would stop ZeRO stage 3, so that no module with such a weight may remain.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from apt_ds.models.blocks import HIDDEN, Anatomy, Sublayer, block_slices
from apt_ds.models.export.apt_emptied_sublayers import Bias
from apt_ds.models.modules import linear_at, replace_module
from apt_ds.runtime import zero


def emptied_sites(anatomy: Anatomy, keep: np.ndarray) -> list[int]:
    """The sites that lose their last blocks in a cut, of families that state what replaces them.

    Args:
        anatomy: the anatomy before the cut.
        keep: bool [blocks], the blocks that remain.
    """
    spans = [(site, keep[span]) for site, span in block_slices(anatomy.sizes) if site != HIDDEN]
    return [site for site, kept in spans if len(kept) and not kept.any() and anatomy.sites[site].module]


def empty_sublayer(model: nn.Module, site: Sublayer, state: zero.EngineState | None) -> None:
    """Replace a sublayer by the bias of its consumer, zeros where it has none. Collective under ZeRO stage 3.

    Args:
        model: the model without an engine and without hooks.
        site: the sublayer. Its family must state what replaces it.
        state: optimizer state, which loses the entries of the weights that go, or None.
    """
    consumer, module = linear_at(model, site.consumer), model.get_submodule(site.module)
    bias: nn.Parameter | None = getattr(consumer, "bias", None)
    if bias is None:
        like = next(consumer.parameters())
        bias = nn.Parameter(torch.zeros(consumer.out_features, device=like.device, dtype=like.dtype), False)
        zero.shard([bias], like=like)
    old = dict(consumer.named_parameters(site.consumer)) | dict(module.named_parameters(site.module))
    replace_module(model, site.consumer, Bias(bias))
    replace_module(model, site.module, site.emptied(module))
    for name, parameter in old.items():
        if parameter is not bias:
            zero.release(parameter)
            if state is not None:
                state.tensors.pop(name, None)
