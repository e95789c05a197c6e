"""What removing a block costs after a repair: the score of `--score obs` (METHOD.md section 12).

Calibration steps sum the squared gradients at the output of every consumer: the weight s of each output's error, as the
diagonal of the empirical Fisher information. A walk through the layers then collects G, the mean of x x^T over tokens,
of one consumer at a time. `removal_costs.py` makes the scores of both. They estimate the change of the loss up to
a factor that is the same for all sites, so that heads and neurons of all layers compare.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.config.errors import UserError
from apt_ds.models.blocks import ALL_KINDS, Anatomy, block_slices
from apt_ds.pruning.activation_hooks import ActivationHooks, Observer, output_hook
from apt_ds.pruning.kurtosis import effective_weight
from apt_ds.pruning.layer_walk import LayerWalk, WalkBatch, WalkTokens
from apt_ds.pruning.removal_costs import removal_costs
from apt_ds.runtime import collectives, heartbeat, zero


class Obs(ActivationHooks):
    """Costs of removal, of heads and neurons.

    Attributes:
        abs_sums: fp32 [sites, d_m], squared gradients of this step at the output of each consumer.
        squares: those of all steps.
        costs: float64 [blocks]. Zero before `score_layer_inputs`.
    """

    reads_layer_inputs = True

    def __init__(self, anatomy: Anatomy, device: torch.device, kinds: tuple[str, ...] = ALL_KINDS) -> None:
        super().__init__(anatomy, device, tuple(kind for kind in kinds if kind in ("heads", "neurons")))

    def resize(self, anatomy: Anatomy) -> None:
        """Take over an anatomy and forget all observations. Hooks must be off."""
        super().resize(anatomy)
        self.abs_sums = torch.zeros(len(anatomy.sites), anatomy.sizes.hidden, device=self.device)
        self.squares = torch.zeros_like(self.abs_sums)
        self.costs = np.zeros(anatomy.sizes.total())

    def install(self, model: nn.Module) -> None:
        """Put hooks on the output of every consumer that may lose blocks."""
        assert not self._handles
        for number in self._scored():
            module = model.get_submodule(self.anatomy.sites[number].consumer)
            self._handles.append(module.register_forward_hook(output_hook(self._observer(number))))

    def _scored(self) -> list[int]:
        """The sites whose blocks get a score."""
        return [number for number, count in enumerate(self.anatomy.sizes.counts) if count and self.observes(number)]

    def watch(self, number: int, x: Tensor) -> Observer:
        """Sum the squared gradients over counted tokens. Stores no activation."""
        valid = self.counted(number).valid.float()

        def commit(gradient: Tensor) -> None:
            self.abs_sums[number] += (valid @ gradient.float().square().flatten(0, -2)).squeeze(0)

        return commit

    def update(self, gradient_scale: float) -> None:
        """Add the squares of a step. See `Scorer.update`."""
        self.squares += self.abs_sums * gradient_scale**2
        self.abs_sums.zero_()

    @torch.no_grad()
    def score_layer_inputs(self, model: nn.Module, batches: list[WalkBatch]) -> None:
        """Make the scores. See `Scorer.score_layer_inputs`."""
        if not self.squares.any():
            return
        training = model.training
        model.eval()
        try:
            walk = LayerWalk(model, self.anatomy, batches)
            for number, layer in enumerate(self.anatomy.layers):
                for site in self._scored():
                    if self.anatomy.sites[site].consumer.startswith(f"{layer}."):
                        self._score_site(walk, number, site)
                if number + 1 < len(self.anatomy.layers):
                    walk.advance(number)
        finally:
            model.train(training)

    def _score_site(self, walk: LayerWalk, layer: int, number: int) -> None:
        """Collect G of a consumer, and score its blocks. Collective."""
        site, span = self.anatomy.sites[number], dict(block_slices(self.anatomy.sizes))[number]
        heartbeat.phase(f"scoring {site.consumer}", limited=False)
        consumer = walk.model.get_submodule(site.consumer)
        gram = mean_gram(walk, layer, consumer, site.unit * self.anatomy.sizes.counts[number])
        with effective_weight(consumer) as weight:
            # solvers may differ in the last bit between machines
            self.costs[span] = collectives.on_main(lambda: self._costs(number, weight, gram))

    def _costs(self, number: int, weight: Tensor, gram: Tensor) -> np.ndarray:
        site = self.anatomy.sites[number]
        try:
            return removal_costs(weight, self.squares[number], gram, site.unit) / 2
        except ArithmeticError as error:
            raise UserError(
                f"--score obs: {error} ({site.consumer}). Use --bf16 or look at the calibration data"
            ) from error

    def scores(self) -> np.ndarray:
        """The costs, float64 [blocks]."""
        return self.costs

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Keep the costs of the blocks that remain. Hooks must be off."""
        costs = self.costs[keep]
        self.resize(anatomy)
        self.costs = costs


def mean_gram(walk: LayerWalk, layer: int, consumer: nn.Module, width: int) -> Tensor:
    """Mean of x x^T over the counted tokens of all ranks, fp32 [width, width]. Collective."""
    gram, count = torch.zeros(width, width, device=zero.device()), torch.zeros(1, device=zero.device())

    def add(x: Tensor, tokens: WalkTokens) -> None:
        rows = x[tokens.counted].float()
        gram.addmm_(rows.T, rows)
        count.add_(len(rows))

    walk.inputs_of(layer, consumer, add)
    return collectives.all_reduce_sum(gram) / collectives.all_reduce_sum(count).clamp(min=1)
