"""Random generators of a run, and their state in a checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ds.runtime import collectives


class Generators:
    """The process's generators (Python, NumPy, torch on CPU and GPU), and a generator for rank growth.

    Attributes:
        surgery: draws the weights by which ranks grow. The same on all ranks.
    """

    def __init__(self, seed: int) -> None:
        self.surgery = torch.Generator().manual_seed(seed + 1)

    def state_dict(self) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """JSON values by rank, and tensors by "RANK:NAME" and "surgery". Collective."""
        version, words, gauss = random.getstate()
        numpy_state = np.random.get_state(legacy=False)
        words_of_numpy = numpy_state["state"]["key"].astype(np.int64)
        own = {
            "python": torch.tensor(words),
            "numpy": torch.from_numpy(words_of_numpy),
            "cpu": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            own["cuda"] = torch.cuda.get_rng_state()
        position = [numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]]
        values = {"python": [version, gauss], "numpy": [int(position[0]), int(position[1]), float(position[2])]}
        by_rank = collectives.gather_objects((values, own))
        tensors = {f"{rank}:{name}": tensor for rank, (_, own) in enumerate(by_rank) for name, tensor in own.items()}
        return [values for values, _ in by_rank], tensors | {"surgery": self.surgery.get_state()}

    def load_state_dict(self, values: list[dict[str, Any]], tensors: dict[str, Tensor]) -> None:
        """Resume from what `state_dict` returned. A rank that the saved run did not have keeps its own state."""
        self.surgery.set_state(tensors["surgery"])
        rank = collectives.rank()
        if rank >= len(values):
            return
        own = {name.partition(":")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{rank}:")}
        version, gauss = values[rank]["python"]
        random.setstate((version, tuple(own["python"].tolist()), gauss))
        np.random.set_state(("MT19937", own["numpy"].numpy().astype(np.uint32), *values[rank]["numpy"]))
        torch.set_rng_state(own["cpu"])
        if torch.cuda.is_available() and "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"])
