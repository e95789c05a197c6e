"""Which examples are held out from training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import Example


def split_held_out(examples: Sequence[Example], n: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Sets `n` examples aside: (train, held_out), chosen by `seed`, both in their original order."""
    train, held_out = held_out_numbers(len(examples), n, seed)
    return [examples[i] for i in train], [examples[i] for i in held_out]


def held_out_numbers(total: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the examples to train on and of the `n` held out, of `total`, see `split_held_out`."""
    if n and total == 1:
        raise UserError(
            "--eval_size: the data has only one example, so none can be held out; add examples or give --eval_data_path"
        )
    if not 0 <= n < total:
        raise UserError(f"--eval_size: cannot hold out {n} of {total} examples; give at most {total - 1}")
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).permutation(total)[:n]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
