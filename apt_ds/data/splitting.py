"""Which examples are held out from training."""

from __future__ import annotations

import numpy as np

from apt_ds.config.errors import UserError


def held_out_numbers(total: int, n: int, seed: int, name: str = "", whole: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples: the numbers of those to train on, and of the `n` held out. Both increase.

    Args:
        total: examples of the source.
        n: how many to hold out.
        seed: chooses them.
        name: the source, for messages.
        whole: examples to hold out of all sources, of which `n` are the share of this one. 0: this is the only source.

    Raises:
        UserError: nothing would be left to train on.
    """
    if n and total == 1:
        raise UserError(
            f"--eval_size: {name or 'the data'} has only one example, so none can be held out. "
            "Add examples or give --eval_data_path"
        )
    if not 0 <= n < total:
        raise cannot_hold_out(n, total, f"examples{name and f' of {name}'}", whole)
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).permutation(total)[:n]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def cannot_hold_out(n: int, total: int, what: str, whole: int = 0) -> UserError:
    """The error of a source that is too small. what: its examples. The others are as in `held_out_numbers`."""
    if whole in (0, n):
        text = f"Give at most {total - 1}, or --eval_data_path"
        return UserError(f"--eval_size: cannot hold out {n} of {total} {what}. {text}")
    text = f"its share of {whole}. Give a smaller --eval_size, or --eval_data_path"
    return UserError(f"--eval_size: cannot hold out {n} of {total} {what}, {text}")
