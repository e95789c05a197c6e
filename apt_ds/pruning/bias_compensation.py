"""Biases that make up for the mean of what a cut removes: the third part of the baseline FLAP.

After An et al., AAAI 2024 (FLAP). A consumer reads x = (x_K, x_R) and loses x_R at the cut. Its bias takes over the
mean: b <- b + W_R mean(x_R), over the tokens of the calibration in the unpruned model. W is the effective weight,
adapter included. A consumer without a bias gets one where the family's export can write it (`Anatomy.new_biases`). The
others are cut as the paper's weight-only variant.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models.blocks import Anatomy, Axis, block_slices
from apt_ds.pruning.kurtosis import effective_weight
from apt_ds.runtime import collectives, zero

NO_BIAS = (
    "--score flap: the written form of this architecture has no bias where layers read what a cut removes, so that "
    "removed means are lost (the weight-only variant)"
)


@torch.no_grad()
def compensate(
    model: nn.Module,
    anatomy: Anatomy,
    keep: np.ndarray,
    means: Mapping[int, np.ndarray],
    state: zero.EngineState | None = None,
) -> list[str]:
    """Add the mean of what the cut `keep` removes to the biases of its consumers. The cut follows. Collective.

    Args:
        model: before the cut, without an engine and without hooks.
        anatomy: its blocks.
        keep: bool [blocks], the blocks that remain.
        means: the mean of every input channel of consumers, by site, float64 [channels].
        state: the state of what the engine trained, changed like the biases, or None.

    Returns:
        The paths of the consumers whose bias has changed.
    """
    changed = []
    spans = {number: span for number, span in block_slices(anatomy.sizes) if number in means}
    lose = {anatomy.kind(number) for number, span in spans.items() if not keep[span].all()}
    for number, span in spans.items():
        site = anatomy.sites[number]
        consumer = model.get_submodule(site.consumer)
        # families that write new biases have them in all layers of a kind or in none: others get zeros
        new = getattr(consumer, "bias", None) is None
        if (new and not anatomy.new_biases) or (keep[span].all() and not (new and site.kind in lose)):
            continue
        kept = keep[span][Axis(number, site.unit).owners(len(keep[span]))]
        removed = torch.from_numpy(np.where(kept, 0.0, means[number])).float()
        with effective_weight(consumer) as weight:
            shift = weight.float() @ removed.to(weight.device)
        # devices may differ in the last bit
        shift = collectives.from_main(shift)
        _set_bias(consumer, shift)
        master = ({} if state is None else state.tensors.get(f"{site.consumer}.bias", {})).get("master")
        if master is not None:
            master += shift.to(master.device)
        changed.append(site.consumer)
    return changed


def lacks_biases(model: nn.Module, anatomy: Anatomy) -> bool:
    """Whether a consumer neither has a bias nor can get one."""
    modules = (model.get_submodule(site.consumer) for site in anatomy.sites)
    return not anatomy.new_biases and any(getattr(module, "bias", None) is None for module in modules)


def _set_bias(module: nn.Module, shift: Tensor) -> None:
    """Add to the bias of a linear layer, zeros where it has none, partitioned as it is. Collective under stage 3."""
    like = module.weight
    assert isinstance(like, nn.Parameter)
    old: nn.Parameter | None = getattr(module, "bias", None)
    with zero.gathered([] if old is None else [old]):
        values = shift if old is None else old.float() + shift
        new = nn.Parameter(
            values.to(like.dtype), requires_grad=like.requires_grad if old is None else old.requires_grad
        )
    zero.shard([new], like=like if old is None else old)
    module.bias = new
    if old is not None:
        # the old bias must be free
        zero.release(old)
