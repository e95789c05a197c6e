"""Fisher information of every block's mask, and the mask values that make up for what goes (the baseline LoRA+Prune).

After Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, sections 4.1 to 4.3:
blocks are ranked by the diagonal of the empirical Fisher information of their masks, sum over examples of
(dL/dm_j)^2; within a site the choice is then rearranged against the full Fisher matrix of that site; last, the masks of
what stays are set by least squares so that the site's output comes nearest to what it was.
Departures: budget, alignment and structure are those of `search`, not of a latency model; the least squares see the
inputs of the unpruned model at every site, where the paper goes from layer to layer, and lean towards masks of 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.pruning.activation_hooks import ActivationHooks
from apt_ds.pruning.salience import effective_weight
from apt_ds.runtime import collectives

RIDGE = 0.01  # of the mean diagonal: how strongly tuned masks lean towards 1


class Fisher(ActivationHooks):
    """Mask gradients of every calibration example.

    abs_sums: fp32 [global batch, blocks], dL/dm of this step's examples, zero in the rows of other ranks.
    """

    def __init__(self, anatomy: Anatomy, global_batch: int, device: torch.device) -> None:
        self.global_batch = global_batch
        super().__init__(anatomy, device)

    def resize(self, anatomy: Anatomy) -> None:
        """Take over an anatomy and forget what was seen. Taps must be off."""
        super().resize(anatomy)
        self.abs_sums = torch.zeros(self.global_batch, anatomy.sizes.total(), device=self.device)
        self.rows: list[np.ndarray] = []
        self._grams: dict[int, Tensor] = {}

    def watch(self, number: int, x: Tensor) -> Any:
        """Keeps x for the gradient: dL/dm_j of an example is the sum of x * gradient over its tokens and j's dims."""
        owner, valid, first = self.owner[self.places[number]], self.counted(number), self.first

        def commit(gradient: Tensor) -> None:
            each = (x.float() * gradient.float()).sum(dim=1)
            self.abs_sums[first : first + len(each)].index_add_(1, owner, each)
            if number < len(self.anatomy.sites):
                self._take_gram(number, x, valid)

        return commit

    def _take_gram(self, site: int, x: Tensor, valid: Tensor) -> None:
        """Adds X^T X over counted tokens."""
        rows = x.reshape(-1, x.shape[-1])[valid.flatten() > 0].float()
        if site not in self._grams:
            self._grams[site] = torch.zeros(x.shape[-1], x.shape[-1], device=self.device)
        self._grams[site].addmm_(rows.T, rows)

    def update(self, gradient_scale: float) -> None:
        """Take this step's mask gradients (already summed over ranks) in; `gradient_scale` as in `Salience.update`."""
        self.rows.append((self.abs_sums * gradient_scale).cpu().numpy())
        self.abs_sums.zero_()

    def discard(self) -> None:
        """Forget this step's mask gradients (a non-finite loss)."""
        self.abs_sums.zero_()

    def scores(self) -> np.ndarray:
        """Diagonal of the Fisher information, float64 [blocks]."""
        total = np.zeros(self.anatomy.sizes.total())
        for rows in self.rows:
            total += np.square(rows, dtype=np.float64).sum(axis=0)
        return total

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Follow a cut: what was measured belongs to the old shapes. Taps must be off."""
        self.resize(anatomy)

    def rearrange(self, keep: np.ndarray) -> np.ndarray:
        """`keep` (bool [blocks]) with better company at every site, the same number everywhere."""
        gradients = np.concatenate(self.rows)
        better = keep.copy()
        for _, span in block_slices(self.anatomy.sizes):
            better[span] = rearranged(gradients[:, span], keep[span])
        return better

    def fit_masks(self, model: nn.Module, keep: np.ndarray) -> np.ndarray:
        """Mask values that make up for the blocks that go, float64 [blocks]. Collective; gathers one weight at a time.

        Hidden dimensions keep 1: there is no one layer whose output theirs could be matched to.
        """
        values = np.ones(len(keep))
        for number, span in block_slices(self.anatomy.sizes):
            if number not in self._grams or keep[span].all():
                continue
            gram = collectives.all_reduce_sum(self._grams[number])
            site = self.anatomy.sites[number]
            with effective_weight(model.get_submodule(site.consumer)) as weight:
                inner = gram * (weight.float().T @ weight.float())
            blocks = inner.view(len(keep[span]), site.unit, -1, site.unit).sum(dim=(1, 3))
            values[span] = tuned_masks(blocks.double().cpu().numpy(), keep[span])
        # solvers may differ in the last bit from one machine to the next
        return collectives.on_main(lambda: values)


def rearranged(gradients: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Swap what goes for what stays, once through, while the full Fisher information says that it costs less.

    gradients: [examples, blocks]; keep: bool [blocks]. Removing a set R costs |sum of its gradients|^2, examples
    summed. Returns bool [blocks] with as many True.
    """
    keep = keep.copy()
    gradients = gradients.astype(np.float64)
    norms = np.square(gradients).sum(axis=0)
    total = gradients[:, ~keep].sum(axis=1)
    for out in np.flatnonzero(~keep):
        without = total - gradients[:, out]
        inside = np.flatnonzero(keep)
        if not len(inside):
            break
        costs = 2 * (without @ gradients[:, inside]) + norms[inside]
        best = int(np.argmin(costs))
        if costs[best] < 2 * (without @ gradients[:, out]) + norms[out]:
            keep[out], keep[inside[best]] = True, False
            total = without + gradients[:, inside[best]]
    return keep


def tuned_masks(gram: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Least-squares masks: the kept contributions weighted by them sum to nearly what all of them summed to.

    gram: [blocks, blocks], inner products of the blocks' contributions to the output over tokens; keep: bool
    [blocks]. Returns float64 [blocks], 1 where a block goes.
    """
    values = np.ones(len(keep))
    kept, gone = np.flatnonzero(keep), np.flatnonzero(~keep)
    inner = gram[np.ix_(kept, kept)]
    ridge = RIDGE * np.trace(inner) / len(kept)
    if ridge > 0:
        missing = gram[np.ix_(kept, gone)].sum(axis=1)
        values[kept] += np.linalg.solve(inner + ridge * np.eye(len(kept)), missing)
    return values
