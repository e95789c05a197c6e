"""Learned gates (`--score l0`): CoFi's L0 regularisation with a Lagrangian, on the blocks of this package.

M. Xia, Z. Zhong, D. Chen, "Structured Pruning Learns Compact and Accurate Models", ACL 2022. Every block that may be
removed has a gate z of the hard concrete distribution. The optimizer steps of the pruning phase multiply blocks with
sampled gates. Adam descends on log alpha, and ascends on lambda1 and lambda2, of

    L + lambda1 (s - t) + lambda2 (s - t)^2

s is the expected removed fraction of the prunable parameters, t its target (`schedules.gate_target`). Where sublayers
may lose all blocks, every sublayer has a gate too, which multiplies those of its blocks (CoFi's coarse masks).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ds.config import schedules
from apt_ds.config.schedules import ADAM
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices, plural
from apt_ds.pruning import hard_concrete
from apt_ds.pruning.mask_values import MaskValues
from apt_ds.pruning.scorer import Scorer

DROPPED = 0.01  # share of a gate's noise that closes it at the start, by CoFi's formula for log alpha
MISSED = 0.02  # difference from the budget, as a fraction of the prunable parameters, from which a run warns
SPREAD = 0.01  # standard deviation of log alpha at the start


class L0Gates(Scorer):
    """The gates of all blocks, with their optimizers. All of it is on the CPU in float64, and equal on all ranks.

    Attributes:
        log_alpha: [blocks + coarse gates].
        multipliers: lambda1 and lambda2, [2].
        rate: the value of `--gate_learning_rate`. 0: the schedule chooses.
        gated: bool [blocks], which blocks may be removed.
        coarse: the sites that have a gate of their own.
        updates: number of updates so far.
        abs_sums: fp32 [blocks], the gradient of the loss with respect to the gates.
    """

    uses_hooks = True

    def __init__(
        self,
        anatomy: Anatomy,
        device: torch.device,
        kinds: tuple[str, ...],
        coarse: bool,
        seed: int,
        rate: float = 0.0,
    ) -> None:
        self.kinds, self.seed, self.rate = kinds, seed, rate
        self.updates, self.target = 0, 0.0
        self.original = anatomy.num_parameters(anatomy.sizes)
        may_go = [site for site in range(len(anatomy.sites)) if plural(anatomy.kind(site)) in kinds]
        self.coarse = tuple(may_go) if coarse else ()
        super().__init__(anatomy, device)
        start = math.log(1.0 - DROPPED) - math.log(DROPPED)
        spread = np.random.default_rng([seed, 0]).normal(start, SPREAD, anatomy.sizes.total() + len(self.coarse))
        self.log_alpha = torch.from_numpy(spread).requires_grad_()
        self.multipliers = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        self._noise = torch.zeros_like(self.log_alpha)
        self._make_optimizers()

    def _make_optimizers(self) -> None:
        self._optimizers = {
            "gates": torch.optim.Adam([self.log_alpha]),
            "multipliers": torch.optim.Adam([self.multipliers], maximize=True),
        }

    def resize(self, anatomy: Anatomy) -> None:
        """Take over an anatomy."""
        super().resize(anatomy)
        sizes = anatomy.sizes
        self.abs_sums = torch.zeros(sizes.total(), device=self.device)
        places = list(block_slices(sizes))
        self.gated = torch.zeros(sizes.total(), dtype=torch.bool)
        # the coarse gate of each block, and behind them a gate that is always open
        owner = torch.full((sizes.total(),), len(self.coarse))
        for site, span in places:
            self.gated[span] = plural(anatomy.kind(site)) in self.kinds
            if site in self.coarse:
                owner[span] = self.coarse.index(site)
        self._owner, self._places = owner, places

    def _joined(self, values: Tensor) -> Tensor:
        """A value per gate, [blocks + coarse], as a value per block: its own times its sublayer's. 1 without a gate."""
        blocks = len(self.gated)
        own = torch.where(self.gated, values[:blocks], 1.0)
        if not self.coarse:
            return own
        return own * torch.cat([values[blocks:], values.new_ones(1)])[self._owner]

    # What a step asks

    def begin_step(self, step: int, target: float, phase: int) -> np.ndarray:
        """The sampled gates of an update, by the schedules of the phase. See `Scorer.begin_step`."""
        rate, betas = schedules.gate_rate(self.rate, phase), schedules.gate_betas(phase)
        return self.draw(step, target, rate, schedules.multiplier_rate(phase), betas)

    def take_mask_gradients(self, masks: MaskValues) -> None:
        """The gradients of the masks are those of the gates."""
        self.abs_sums = masks.gradients(self.device)

    def draw(
        self, step: int, target: float, rate: float, multiplier_rate: float, betas: tuple[float, float] = ADAM
    ) -> np.ndarray:
        """The sampled gates of a step, float64 [blocks], 0 to 1. The same on all ranks.

        Args:
            step: optimizer updates done. Step and seed decide the noise.
            target: the removed fraction t that the Lagrangian asks for in this step.
            rate: the learning rate of the gates.
            multiplier_rate: the learning rate of the multipliers.
            betas: the coefficients of both Adams.
        """
        self.target = target
        for name, value in (("gates", rate), ("multipliers", multiplier_rate)):
            self._optimizers[name].param_groups[0].update(lr=value, betas=betas)
        noise = np.random.default_rng([self.seed, 1, step]).random(len(self.log_alpha))
        self._noise = torch.from_numpy(noise)
        with torch.no_grad():
            return self._joined(hard_concrete.sample(self.log_alpha, self._noise)).numpy()

    def gates(self) -> np.ndarray:
        """The gates without noise, float64 [blocks], 0 to 1."""
        with torch.no_grad():
            return self._joined(hard_concrete.deterministic(self.log_alpha)).numpy()

    def expected_removed(self) -> Tensor:
        """The expected removed fraction s of the prunable parameters, float64 []. Differentiable.

        Gates are independent, so that the expectation of a product of counts is the product of their expectations.
        """
        present = self._joined(hard_concrete.probability(self.log_alpha))
        counts = {site: present[span].sum() for site, span in self._places}
        width = torch.stack(
            [site.params_per_hidden * counts[number] for number, site in enumerate(self.anatomy.sites)]
        ).sum()
        return 1.0 - counts[HIDDEN] * width / self.original

    def update(self, gradient_scale: float) -> None:
        """One step of both optimizers with the gradient in `abs_sums`, summed over ranks."""
        gradient = (self.abs_sums.cpu() * gradient_scale).double()
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()
        gap = self.expected_removed() - self.target
        penalty = self.multipliers[0] * gap + self.multipliers[1] * gap.square()
        sampled = self._joined(hard_concrete.sample(self.log_alpha, self._noise))
        ((sampled * gradient).sum() + penalty).backward()
        for optimizer in self._optimizers.values():
            optimizer.step()
        self.updates += 1

    # What the pruner asks

    def notice(self, sparsity: float) -> str:
        """One line if the Lagrangian has not reached the budget at the end of the phase, else ''."""
        removed = float(self.expected_removed().detach())
        if abs(removed - sparsity) <= MISSED:
            return ""
        return (
            f"--score l0: at the end of the pruning phase the gates expect to remove {100 * removed:.1f} % of the "
            f"prunable parameters, and --sparsity is {100 * sparsity:.1f} %. The order of the gates decides the rest, "
            "to which the model has not adapted. Give more steps, a higher --pruning_phase or a higher "
            "--gate_learning_rate"
        )

    def scores(self) -> np.ndarray:
        """sigmoid(log alpha) times parameters, float64 [blocks]: the order of the gates, without their ties at 0 and 1.

        All zero before the first update.
        """
        with torch.no_grad():
            gates = self._joined(torch.sigmoid(self.log_alpha)).numpy()
        return gates * self.anatomy.params_per_block(self.anatomy.sizes) * bool(self.updates)

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Keep the gates of the blocks that remain. They are not trained any more."""
        blocks = len(self.gated)
        kept = torch.cat([self.log_alpha.detach()[:blocks][torch.from_numpy(keep)], self.log_alpha.detach()[blocks:]])
        self.resize(anatomy)
        self._take(kept)

    def _take(self, log_alpha: Tensor) -> None:
        self.log_alpha = log_alpha.clone().requires_grad_()
        self._noise = torch.zeros_like(log_alpha)
        self._make_optimizers()

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Gates, multipliers and the moments of both. The noise of a step depends on step and seed only."""
        tensors = {"log_alpha": self.log_alpha.detach(), "multipliers": self.multipliers.detach()}
        for name, optimizer in self._optimizers.items():
            for state in optimizer.state.values():
                tensors |= {f"{name}:{key}": value for key, value in state.items()}
        return {"updates": self.updates}, {f"l0:{name}": value.clone() for name, value in tensors.items()}

    def load_state_dict(self, kept_ids: np.ndarray, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take over `state_dict`."""
        own = {name.removeprefix("l0:"): value.clone() for name, value in tensors.items() if name.startswith("l0:")}
        self.updates = values["updates"]
        self.multipliers = own["multipliers"].requires_grad_()
        self._take(own["log_alpha"])
        for name, optimizer in self._optimizers.items():
            state = {key.partition(":")[2]: value for key, value in own.items() if key.startswith(f"{name}:")}
            if state:
                optimizer.state[optimizer.param_groups[0]["params"][0]] = state
