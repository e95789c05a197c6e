"""Which adapters grow, and to which rank (METHOD.md section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apt_ds.config import schedules
from apt_ds.config.pruning_options import AdapterOptions
from apt_ds.models.adapter import adapters
from apt_ds.runtime import zero


@dataclass(frozen=True)
class AdapterSize:
    """Path and rank of an adapter, and its parameters per unit of rank (d_in + d_out)."""

    path: str
    rank: int
    per_rank: int


class RankGrowth:
    """The importance of all adapters, and the ranks that follow from it.

    Attributes:
        importance: moving average of I, fp32 [adapters] in module order. None before the first observation.
        initial_parameters: adapter parameters at the start of the run. 0 before `begin`.
        paths: of the adapters. Empty before `begin`.
    """

    def __init__(self, options: AdapterOptions, decay: float, phase: int, every: int, start: int = 0) -> None:
        """Grow nothing yet.

        Args:
            options: which adapters grow.
            decay: weight of the past in the moving average.
            phase: the update that ends the pruning phase.
            every: updates between two adjustments.
            start: updates before the pruning phase.
        """
        self.options, self.decay, self.phase, self.every, self.start = options, decay, phase, every, start
        self.importance: Tensor | None = None
        self.initial_parameters = 0
        self.paths: list[str] = []

    def begin(self, model: nn.Module) -> None:
        """Note the adapters that remain, and once per run their initial size."""
        paths = [path for path, _ in adapters(model)]
        if self.importance is not None and self.paths:
            places = [self.paths.index(path) for path in paths]
            self.importance = self.importance[places]
        self.paths = paths
        self.initial_parameters = self.initial_parameters or parameters(adapter_sizes(model))

    def observes_in(self, step: int) -> bool:
        """Whether the update that follows `step` updates also observes importance."""
        return self.options.grows and self.start <= step < self.phase

    @torch.no_grad()
    def observe(self, engine: zero.Engine) -> Tensor:
        """This rank's part of I = sum |W_B * dL/dW_B| in this step, fp32 [adapters]. Sum it over ranks."""
        return zero.weight_times_gradient(engine, [adapter.lora_B for _, adapter in adapters(engine.module)])

    def update(self, importance: Tensor) -> None:
        """Take a step's importance, summed over ranks, into the moving average. fp32 [adapters]."""
        average = self.importance if self.importance is not None else torch.zeros_like(importance)
        self.importance = self.decay * average + (1 - self.decay) * importance

    def plan(self, step: int, model: nn.Module) -> dict[str, int]:
        """The new rank of each adapter that grows after `step` updates, by path."""
        due = self.options.grows and schedules.is_adjustment(step, self.every, self.phase, self.start)
        if not due or self.importance is None:
            return {}
        grown, length = step - self.start, self.phase - self.start
        budget = schedules.rank_budget(grown, length, self.initial_parameters, self.options.rank_budget)
        sizes = adapter_sizes(model)
        if self.options.rank_growth == "even":
            return even(sizes, budget, self.options.max_rank)
        return grow_top_half(self.importance.tolist(), sizes, budget, self.options.max_rank)

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(values, tensors) of a checkpoint."""
        tensors = {} if self.importance is None else {"importance": self.importance.cpu()}
        return {"initial_adapters": self.initial_parameters}, tensors

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> None:
        """Take over `state_dict`."""
        self.initial_parameters = values["initial_adapters"]
        if "importance" in tensors:
            self.importance = tensors["importance"].to(device)


def adapter_sizes(model: nn.Module) -> list[AdapterSize]:
    """Sizes of all adapters, in module order."""
    return [
        AdapterSize(path, zero.full_shape(adapter.lora_A)[0], adapter.in_features + adapter.out_features)
        for path, adapter in adapters(model)
    ]


def parameters(sizes: list[AdapterSize]) -> int:
    """Parameters of all adapters together."""
    return sum(size.rank * size.per_rank for size in sizes)


def grow_top_half(importance: list[float], sizes: list[AdapterSize], budget: float, max_rank: int) -> dict[str, int]:
    """New ranks of the adapters that grow: the top half by importance gets rank floor(r D_t' / D_t).

    Args:
        importance: I of each adapter, in the order of `sizes`.
        sizes: all adapters. Their parameters are D_t.
        budget: D_t', the parameters to which the adapters may grow.
        max_rank: highest rank.
    """
    ratio = budget / parameters(sizes)
    ranking = sorted(range(len(sizes)), key=lambda i: (-importance[i], i))
    grown: dict[str, int] = {}
    for i in ranking[: (len(sizes) + 1) // 2]:
        # the quotient of two whole numbers must not lose a rank to rounding
        rank = min(max_rank, int(sizes[i].rank * ratio + 1e-9))
        if rank > sizes[i].rank:
            grown[sizes[i].path] = rank
    return grown


def even(sizes: list[AdapterSize], budget: float, max_rank: int) -> dict[str, int]:
    """New ranks where all adapters grow alike to `budget` parameters: the control of `grow_top_half`."""
    ratio = budget / parameters(sizes)
    grown = {size.path: min(max_rank, int(size.rank * ratio + 1e-9)) for size in sizes}
    return {size.path: grown[size.path] for size in sizes if grown[size.path] > size.rank}
