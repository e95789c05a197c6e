"""The calibration batches of a walk through the layers (`pruning/layer_walk.py`)."""

from __future__ import annotations

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
    """This rank's batches of the first `--repair_examples` calibration examples. Rows go to the two halves in turn."""
    world, rank = collectives.world_size(), collectives.rank()
    steps = -(-run.pruning.repair_examples // run.optim.global_batch(world))
    walk = []
    for step in range(steps):
        for micro in range(batches.per_step):
            number = (step * batches.per_step + micro) * world + rank
            walk.append(_walk_batch(task_loss, model, batches.on_device(step, micro), number))
    return walk


def _walk_batch(task_loss: TaskLoss, model: nn.Module, batch: Batch, number: int) -> WalkBatch:
    inputs = task_loss.base_inputs(model, batch)

    def run(base: nn.Module) -> None:
        with known_rows(batch.packed, batch.padded):
            base(**inputs)

    half = (torch.arange(len(batch.input_ids), device=batch.input_ids.device) + number) % 2
    written = task_loss.decoder_mask(batch)
    return WalkBatch(run, _tokens(batch.attention_mask, half), None if written is None else _tokens(written, half))


def _tokens(mask: Tensor, half: Tensor) -> WalkTokens:
    """Tokens by their mask, 0 or 1, [rows, length], and the half of each row, int64 [rows]."""
    return WalkTokens(mask.flatten() > 0, half.repeat_interleave(mask.shape[1]))
