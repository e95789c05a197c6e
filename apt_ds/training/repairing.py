"""Repair at the cuts of a run: which calibration batches it reads, and what it reports and saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.config.run_config import RunConfig
from apt_ds.losses.task_loss import TaskLoss
from apt_ds.models.blocks import Anatomy
from apt_ds.pruning.layer_walk import WalkBatch
from apt_ds.pruning.reader_repair import kept_hidden, repairs_readers
from apt_ds.pruning.repair import repair, repairable, repairs_anything
from apt_ds.runtime import collectives, zero
from apt_ds.runtime.clock import seconds_after
from apt_ds.training.dense_divergence import finite
from apt_ds.training.micro_batches import MicroBatches
from apt_ds.training.walk_batches import walk_batches


class Repairer:
    """Repairs consumers before cuts (`pruning/repair.py`), as the options say.

    Attributes:
        seconds: time that all repairs took.
        tokens: those that the last repair read, over all ranks. With a decoder, those of the side that has fewer.
        sites: figures of the last repair of each layer, by path.
    """

    def __init__(self, run: RunConfig, task_loss: TaskLoss, batches: MicroBatches, warn: Callable[[str], None]) -> None:
        self.run_config, self.task_loss, self.batches, self.warn = run, task_loss, batches, warn
        self.seconds, self.tokens = 0.0, 0
        self.sites: dict[str, dict[str, float | None]] = {}

    @property
    def paths(self) -> list[str]:
        """Repaired layers, in the order of their first repair. A checkpoint holds their weights."""
        return list(self.sites)

    def before_cut(
        self, model: nn.Module, anatomy: Anatomy, keep: np.ndarray | None, state: zero.EngineState | None
    ) -> None:
        """Repair what the cut `keep` shortens, if the options say so. Collective.

        Args:
            model: before the cut, without an engine and without hooks.
            anatomy: its blocks.
            keep: bool [blocks], the blocks that remain. None: nothing is cut.
            state: the state of what the engine trained.
        """
        if not self.run_config.pruning.repairs or keep is None or not repairs_anything(anatomy, keep):
            return
        start = seconds_after(zero.device())
        batches = walk_batches(self.run_config, self.task_loss, self.batches, model)
        self.tokens, smaller_half = self._tokens(batches)
        if notice := few_tokens(self.tokens, smaller_half, anatomy, keep):
            self.warn(notice)
        for site in repair(model, anatomy, keep, batches, state):
            values = asdict(site)
            path = values.pop("path")
            self.sites[path] = {name: finite(value) for name, value in values.items()}
        self.seconds += seconds_after(zero.device()) - start

    @staticmethod
    def _tokens(batches: list[WalkBatch]) -> tuple[int, int]:
        """Tokens that count, over all ranks, and those of the smaller half. Collective.

        With a decoder, each is the number of the side that has fewer.
        """
        sides = [
            [batch.tokens for batch in batches],
            [batch.decoder_tokens for batch in batches if batch.decoder_tokens is not None],
        ]
        counts = [
            torch.stack([tokens.half[tokens.counted].bincount(minlength=2) for tokens in side]).sum(0).float()
            for side in sides
            if side
        ]
        halves = collectives.all_reduce_sum(torch.stack(counts))
        return int(halves.sum(1).min()), int(halves.min())

    def summary(self) -> dict[str, Any]:
        """Figures for the summary. {} without a repair."""
        if not self.sites:
            return {}
        sites = [{"path": path, **figures} for path, figures in self.sites.items()]
        return {"repair": {"tokens": self.tokens, "seconds": self.seconds, "sites": sites}}

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The figures so far. The weights are saved with the engine's."""
        return {"sites": self.sites, "seconds": self.seconds, "tokens": self.tokens}, {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take over `state_dict`."""
        self.sites, self.seconds, self.tokens = dict(values["sites"]), values["seconds"], values["tokens"]


def few_tokens(tokens: int, smaller_half: int, anatomy: Anatomy, keep: np.ndarray) -> str:
    """One line if these are too few tokens for the widest fit of a repair, else ''.

    Args:
        tokens: tokens of both halves.
        smaller_half: tokens of the half that has fewer.
        anatomy: the blocks of the model.
        keep: bool [blocks], the blocks that remain.
    """
    widths = [anatomy.sites[n].unit * anatomy.sizes.counts[n] for n in repairable(anatomy, keep)]
    if repairs_readers(anatomy, keep):
        # the input of a reader before the cut and after it
        widths.append(anatomy.sizes.hidden + int(kept_hidden(anatomy, keep).sum()))
    widest = max(widths, default=0)
    if smaller_half >= widest:
        return ""
    return (
        f"--repair ls reads {tokens} tokens. The smaller half of the examples has {smaller_half}, and a layer has "
        f"{widest} inputs: a half cannot tell them apart, so repairs stay small. A half needs about {widest} "
        "tokens: give more --repair_examples, or longer examples"
    )
