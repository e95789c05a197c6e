"""The calibration batches of a walk through the layers (`pruning/layer_walk.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import Batch
from apt_ds.losses.task_loss import TaskLoss
from apt_ds.models.mask_checks import known_rows
from apt_ds.pruning.layer_walk import WalkBatch, WalkTokens
from apt_ds.runtime import collectives
from apt_ds.training.micro_batches import MicroBatches


def walk_batches(run: RunConfig, task_loss: TaskLoss, batches: MicroBatches, model: nn.Module) -> list[WalkBatch]:
    """This rank's batches of the first `--repair_examples` calibration examples.

    Examples of a step go to the two halves in turn, in the order of the step. So the halves are the same however ranks,
    micro-batches and packed rows share the examples.
    """
    steps = -(-run.pruning.repair_examples // run.optim.global_batch(collectives.world_size()))
    walk = []
    for step in range(steps):
        for micro in range(batches.per_step):
            batch, members = batches.on_device(step, micro), batches.members(step, micro)
            halves = [[((step + place) % 2, tokens) for place, tokens in row] for row in members]
            walk.append(_walk_batch(task_loss, model, batch, halves))
    return walk


def _walk_batch(
    task_loss: TaskLoss, model: nn.Module, batch: Batch, halves: Sequence[Sequence[tuple[int, int]]]
) -> WalkBatch:
    """A batch to walk with. halves: for each row its examples in order, each by its half and its tokens."""
    inputs = task_loss.base_inputs(model, batch)

    def run(base: nn.Module) -> None:
        with known_rows(batch.packed, batch.padded):
            base(**inputs)

    written = task_loss.decoder_mask(batch)
    tokens = _tokens(batch.attention_mask, halves)
    # what has a decoder is not packed: its rows have one example each
    return WalkBatch(run, tokens, None if written is None else _tokens(written, halves))


def _tokens(mask: Tensor, halves: Sequence[Sequence[tuple[int, int]]]) -> WalkTokens:
    """Tokens by their mask, 0 or 1, [rows, length]. The last example of a row has all tokens that are left."""
    half = torch.zeros(mask.shape, dtype=torch.int64)
    for row, examples in enumerate(halves):
        start = 0
        for number, tokens in examples:
            half[row, start:] = number
            start += tokens
    return WalkTokens(mask.flatten() > 0, half.to(mask.device).flatten())
