"""Fisher information of every block's mask, and mask values that compensate for a cut (the baseline LoRA+Prune).

After Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022, sections 4.1 to 4.3:
the diagonal of the empirical Fisher information of the masks ranks blocks, sum over examples of (dL/dm_j)^2. The choice
at each site is then rearranged against the full Fisher matrix of that site. Last, least squares set the masks of the
kept blocks so that the site's output comes nearest to the output before the cut.

Departures: `budget_search` gives budget, alignment and structure, where the paper has a latency model. The least
squares see the inputs of the unpruned model at every site, where the paper proceeds layer by layer. They lean towards
masks of 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from apt_ds.models.blocks import ALL_KINDS, Anatomy, block_slices
from apt_ds.pruning.activation_hooks import ActivationHooks, Observer
from apt_ds.pruning.kurtosis import effective_weight
from apt_ds.runtime import collectives

RIDGE = 0.01  # of the mean diagonal: how strongly fitted masks lean towards 1


class Fisher(ActivationHooks):
    """Mask gradients of every calibration example.

    X^T X over this rank's counted tokens is stored per site until the cut.

    Attributes:
        abs_sums: fp32 [global batch, blocks], dL/dm of this step's examples. Zero in the rows of other ranks.
        rows: those of earlier steps, summed over ranks.
    """

    def __init__(
        self, anatomy: Anatomy, global_batch: int, device: torch.device, kinds: tuple[str, ...] = ALL_KINDS
    ) -> None:
        self.global_batch = global_batch
        super().__init__(anatomy, device, kinds)

    def resize(self, anatomy: Anatomy) -> None:
        """Take over an anatomy and forget all observations. Hooks must be off."""
        super().resize(anatomy)
        self.abs_sums = torch.zeros(self.global_batch, anatomy.sizes.total(), device=self.device)
        self.rows: list[np.ndarray] = []
        self._grams: dict[int, Tensor] = {}

    def watch(self, number: int, x: Tensor) -> Observer:
        """Store x until its gradient arrives.

        dL/dm_j of an example is the sum of x * gradient over its tokens and the dimensions of block j.
        """
        owner, valid, first = self.owner[self.places[number]], self.counted(number).valid, self.example_offset

        def commit(gradient: Tensor) -> None:
            each = (x.float() * gradient.float()).sum(dim=1)
            self.abs_sums[first : first + len(each)].index_add_(1, owner, each)
            if number < len(self.anatomy.sites):
                self._add_gram(number, x, valid)

        return commit

    def _add_gram(self, site: int, x: Tensor, valid: Tensor) -> None:
        """Add X^T X over counted tokens. x: [batch, length, d]. valid: [1, batch * length].

        Tokens that overflowed are left out: the step is discarded, but what is added here stays.
        """
        rows = x.reshape(-1, x.shape[-1])[valid.flatten() > 0].float()
        rows = rows[rows.square().sum(1).isfinite()]
        if site not in self._grams:
            self._grams[site] = torch.zeros(x.shape[-1], x.shape[-1], device=self.device)
        self._grams[site].addmm_(rows.T, rows)

    def update(self, gradient_scale: float) -> None:
        """Store this step's mask gradients. See `Scorer.update`."""
        self.rows.append((self.abs_sums * gradient_scale).cpu().numpy())
        self.abs_sums.zero_()

    def scores(self) -> np.ndarray:
        """Diagonal of the Fisher information, float64 [blocks]."""
        total = np.zeros(self.anatomy.sizes.total())
        for rows in self.rows:
            total += np.square(rows, dtype=np.float64).sum(axis=0)
        return total

    def after_cut(self, anatomy: Anatomy, keep: np.ndarray) -> None:
        """Forget all observations: they belong to the old shapes. Hooks must be off."""
        self.resize(anatomy)

    def refine(self, model: nn.Module, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Rearrange the decision at every site, then fit the masks of the kept blocks. See `Scorer.refine`."""
        keep = self.rearrange(keep)
        return keep, self.fit_masks(model, keep)

    def rearrange(self, keep: np.ndarray) -> np.ndarray:
        """Improve the combination of kept blocks at every site. Counts stay. bool [blocks] -> bool [blocks]."""
        gradients = np.concatenate(self.rows)
        better = keep.copy()
        for _, span in block_slices(self.anatomy.sizes):
            better[span] = rearranged(gradients[:, span], keep[span])
        return better

    def fit_masks(self, model: nn.Module, keep: np.ndarray) -> np.ndarray:
        """Mask values that compensate for the removed blocks. Collective. Gathers one weight at a time.

        Hidden dimensions keep 1: no single layer has an output that theirs could match.

        Args:
            model: the model before the cut.
            keep: bool [blocks], the blocks to keep.

        Returns:
            float64 [blocks].
        """
        values = np.ones(len(keep))
        for number, span in block_slices(self.anatomy.sizes):
            if number not in self._grams or keep[span].all() or not keep[span].any():
                continue
            gram = collectives.all_reduce_sum(self._grams[number])
            site = self.anatomy.sites[number]
            with effective_weight(model.get_submodule(site.consumer)) as weight:
                inner = gram * (weight.float().T @ weight.float())
            blocks = inner.view(len(keep[span]), site.unit, -1, site.unit).sum(dim=(1, 3))
            values[span] = tuned_masks(blocks.double().cpu().numpy(), keep[span])
        # solvers may differ in the last bit between machines
        return collectives.on_main(lambda: values)


def rearranged(gradients: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Swap removed blocks for kept ones, one pass, while the full Fisher information says that it costs less.

    Removing a set R costs |sum of its gradients|^2, summed over examples.

    Args:
        gradients: mask gradients, [examples, blocks].
        keep: bool [blocks].

    Returns:
        bool [blocks] with as many True.
    """
    keep = keep.copy()
    gradients = gradients.astype(np.float64)
    norms = np.square(gradients).sum(axis=0)
    total = gradients[:, ~keep].sum(axis=1)
    for removed in np.flatnonzero(~keep):
        without = total - gradients[:, removed]
        kept = np.flatnonzero(keep)
        if not len(kept):
            break
        costs = 2 * (without @ gradients[:, kept]) + norms[kept]
        best = int(np.argmin(costs))
        if costs[best] < 2 * (without @ gradients[:, removed]) + norms[removed]:
            keep[removed], keep[kept[best]] = True, False
            total = without + gradients[:, kept[best]]
    return keep


def tuned_masks(gram: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Least-squares masks: the kept contributions, weighted by them, sum to nearly the sum of all contributions.

    Args:
        gram: inner products of the blocks' contributions to the output over tokens, [blocks, blocks].
        keep: bool [blocks].

    Returns:
        float64 [blocks], 1 for a removed block.
    """
    values = np.ones(len(keep))
    kept, removed = np.flatnonzero(keep), np.flatnonzero(~keep)
    inner = gram[np.ix_(kept, kept)]
    ridge = RIDGE * np.trace(inner) / len(kept)
    if ridge > 0:
        missing = gram[np.ix_(kept, removed)].sum(axis=1)
        values[kept] += np.linalg.solve(inner + ridge * np.eye(len(kept)), missing)
    return values
