"""Rows of several sets, and some rows of one."""

from __future__ import annotations

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.rows import Joined, Subset, split_rows
from apt_ds.data.tokenized import TokenizedSet


def token_set(*lengths: int, first: int = 0, dropped: int = 0) -> TokenizedSet:
    """Rows of these lengths, each filled with a number of its own."""
    return TokenizedSet.of([{"input_ids": [first + i] * n} for i, n in enumerate(lengths)], dropped)


def test_joined_sets_follow_one_another() -> None:
    both = Joined([token_set(2, 3, dropped=1), token_set(5, first=10, dropped=2)])
    assert len(both) == 3 and both.lengths.tolist() == [2, 3, 5] and both.dropped == 3
    assert [both[i]["input_ids"][0] for i in range(3)] == [0, 1, 10]
    prints = {both.fingerprint, Joined([*both.parts], "weights").fingerprint, Joined(both.parts[::-1]).fingerprint}
    assert len(prints) == 3 and Joined(both.parts).fingerprint == both.fingerprint


def test_rows_set_aside_are_no_rows_to_train_on() -> None:
    whole = token_set(*range(1, 21))
    train, held_out = split_rows(whole, 5, seed=1, name="wiki.txt")
    assert (len(train), len(held_out)) == (15, 5)
    assert sorted([*train.lengths, *held_out.lengths]) == list(range(1, 21))
    assert len(train[3]["input_ids"]) == train.lengths[3] and train.fingerprint != held_out.fingerprint
    assert split_rows(whole, 5, 1, "")[0].fingerprint == train.fingerprint != split_rows(whole, 5, 2, "")[0].fingerprint
    assert split_rows(whole, 0, 1, "")[0] is whole
    assert Subset(whole, np.array([3, 1])).lengths.tolist() == [4, 2]
    with pytest.raises(UserError, match=r"cannot hold out 20 of 20 blocks of text of wiki.txt\. Give at most 19"):
        split_rows(whole, 20, 1, "wiki.txt")
