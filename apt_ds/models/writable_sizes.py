"""The uniform sizes that the export of a family can write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from apt_ds.models.blocks import Anatomy

KINDS = ("head", "neuron", "hidden")
Accepts = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def every_size(heads: np.ndarray, neurons: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Accepts all sizes, bool [...]."""
    return np.ones(np.broadcast_shapes(heads.shape, neurons.shape, hidden.shape), dtype=bool)


@dataclass(frozen=True)
class Writable:
    """The uniform sizes that an exported model may have.

    Attributes:
        accepts: int arrays of head blocks per site, neurons per site and hidden dimensions, which broadcast, to a
            bool array of their common shape.
        reason: the requirement of the family, for the error line.
    """

    accepts: Accepts = every_size
    reason: str = ""

    def holds(self, anatomy: Anatomy) -> bool:
        """Whether a model with the sizes of `anatomy` may be written. Sizes that differ by site are always writable."""
        counts = {kind: {n for k, n in anatomy.kinds_and_counts() if k == kind} for kind in KINDS}
        if any(len(sizes) != 1 for sizes in counts.values()):
            return True
        return bool(self.accepts(*(np.array(counts[kind].pop()) for kind in KINDS)))


EVERY_SIZE = Writable()
