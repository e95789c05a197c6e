"""Numbers of blocks of a model with experts, as the budget search counts them, and the blocks that they mean.

All experts of a layer keep the same number of neurons, each its own best ones. So a mixture has two numbers, experts E
and neurons f of each, and the size 3 d_m E f. A number per site, then of hidden dimensions, is an int64 array [sites +
1]. At the site of experts' neurons it is f.
"""

from __future__ import annotations

import numpy as np

from apt_ds.models.blocks import HIDDEN, Anatomy, FusedExperts, block_slices


class Counts:
    """The numbers that a model has, and what numbers cost.

    Attributes:
        anatomy: the model as it is.
        kinds: the kind of every site, then 'hidden'.
        full: the numbers of the model as it is, int64 [sites + 1].
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.kinds = [*(site.kind for site in anatomy.sites), "hidden"]
        self.full = np.array([*anatomy.sizes.counts, anatomy.sizes.hidden])
        self._params_per_hidden = np.array([site.params_per_hidden for site in anatomy.sites])
        self._experts = np.array([mixture.expert_site for mixture in anatomy.experts])
        self._neurons = np.array([mixture.neuron_site for mixture in anatomy.experts])
        self.full[self._neurons] //= self.full[self._experts]

    def parameters(self, numbers: np.ndarray) -> int:
        """Model size C in parameters."""
        return int(numbers[-1] * self._width(numbers))

    def prices(self) -> np.ndarray:
        """Price of one block of every site in the model as it is, float64 [sites + 1].

        A neuron is one of every expert of its layer. An expert has all its neurons.
        """
        params_per_hidden = self._params_per_hidden.copy()
        params_per_hidden[self._experts] = self._params_per_hidden[self._neurons] * self.full[self._neurons]
        params_per_hidden[self._neurons] *= self.full[self._experts]
        return np.array([*(params_per_hidden * self.full[-1]), self._width(self.full)], dtype=np.float64)

    def scores(self, scores: np.ndarray) -> list[np.ndarray]:
        """Scores of every site's blocks, best first. The i-th best neurons of a layer's experts are added up."""
        sites = [-np.sort(-scores[span]) for _, span in block_slices(self.anatomy.sizes)]
        for mixture in self.anatomy.experts:
            table = table_of(scores, self.anatomy, mixture)
            sites[mixture.neuron_site] = -np.sort(-table, axis=1).sum(axis=0)
        return sites

    def remaining(self, removable: np.ndarray) -> np.ndarray:
        """Numbers of blocks that are not removable. Of a mixture's neurons: those of the expert with most."""
        numbers = np.array([np.count_nonzero(~removable[span]) for _, span in block_slices(self.anatomy.sizes)])
        for mixture in self.anatomy.experts:
            numbers[mixture.neuron_site] = (~table_of(removable, self.anatomy, mixture)).sum(axis=1).max()
        return numbers

    def _width(self, numbers: np.ndarray) -> int:
        own = self._params_per_hidden * numbers[:-1]
        own[self._neurons] *= numbers[self._experts]
        return int(own.sum())


def table_of(values: np.ndarray, anatomy: Anatomy, mixture: FusedExperts) -> np.ndarray:
    """The values of a layer's neurons by expert: [blocks] -> [E, f]."""
    return values[dict(block_slices(anatomy.sizes))[mixture.neuron_site]].reshape(mixture.shape(anatomy.sizes))


def mixture_gain(scores: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """Score that all layers keep with e experts and n neurons of each, at [e - 1, n - 1]. float64 [E, f]."""
    where = dict(block_slices(anatomy.sizes))
    total = np.zeros(anatomy.experts[0].shape(anatomy.sizes))
    for mixture in anatomy.experts:
        order = np.argsort(-scores[where[mixture.expert_site]], kind="stable")
        best = -np.sort(-table_of(scores, anatomy, mixture)[order], axis=1)
        total += best.cumsum(axis=0).cumsum(axis=1)
    return total


def best_blocks(scores: np.ndarray, anatomy: Anatomy, numbers: np.ndarray) -> np.ndarray:
    """Keep the best experts of every mixture, the best neurons of each, and the best other blocks. bool [blocks].

    Ties go to the lower index.
    """
    where = dict(block_slices(anatomy.sizes))
    within = {mixture.neuron_site: mixture for mixture in anatomy.experts}
    keep = np.zeros(anatomy.sizes.total(), dtype=bool)
    # experts come before their neurons
    for site in sorted(where, key=lambda site: (site in within, site)):
        span, number = where[site], numbers[-1 if site == HIDDEN else site]
        if site not in within:
            keep[span.start + np.argsort(-scores[span], kind="stable")[:number]] = True
            continue
        mixture = within[site]
        order = np.argsort(-table_of(scores, anatomy, mixture), axis=1, kind="stable")[:, :number]
        table = np.zeros(mixture.shape(anatomy.sizes), dtype=bool)
        np.put_along_axis(table, order, True, axis=1)
        keep[span] = (table & keep[where[mixture.expert_site]][:, None]).ravel()
    return keep
