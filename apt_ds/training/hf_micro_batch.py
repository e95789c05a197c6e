"""The scores of a Trainer's step: which tokens of its micro-batches count, and what the step adds to the average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.scorer import Scorer
from apt_ds.runtime import collectives
from apt_ds.training import hf_optimizer

IGNORED = -100  # the label of a token without a loss


def announce(scorer: Scorer, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    """Tell a scorer of a micro-batch. Waits for the device, as the Trainer has the batch there already.

    Args:
        scorer: has hooks on the model.
        args: positional arguments of the forward pass. The first one may be the token ids.
        kwargs: its other arguments.
        dtype: the dtype of activations.
    """
    tokens = kwargs.get("input_ids", kwargs.get("inputs_embeds", args[0] if args else None))
    assert isinstance(tokens, Tensor), "the forward pass has no input_ids"
    mask, positions = kwargs.get("attention_mask"), None
    if mask is None or mask.dim() != 2:
        mask = torch.ones(tokens.shape[:2], dtype=torch.int64)
        # without padding, positions tell packed examples apart
        positions = kwargs.get("position_ids")
    labels = kwargs.get("labels")
    decoder = (labels != IGNORED).long().cpu() if scorer.anatomy.decoder_prefix and labels is not None else None
    if positions is not None:
        positions = positions.expand(mask.shape).cpu()
    scorer.begin(mask.cpu(), dtype, 0, decoder, positions)


def take_scores(pruner: Pruner, model: nn.Module, optimizer: Any) -> None:
    """Add up the ranks' sums and take them into the average, or discard those of a step that was not finite.

    Collective.

    Args:
        pruner: has the scorer.
        model: the model with adapters.
        optimizer: the Trainer's optimizer, which knows the scale of the loss.
    """
    scorer = pruner.scorer
    scorer.end()
    sums = collectives.all_reduce_sum(scorer.abs_sums)
    if not bool(torch.isfinite(sums).all()):
        pruner.discard()
        return
    if scorer.stale:
        scorer.measure_outliers(model)
    scorer.update(1.0 / (hf_optimizer.loss_scale(optimizer) * collectives.world_size()))
