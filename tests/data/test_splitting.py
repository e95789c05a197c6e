"""Which examples are held out."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.splitting import held_out_numbers


def test_split_is_deterministic_and_leaves_training_data() -> None:
    def split(n: int, seed: int) -> tuple[list[int], list[int]]:
        train, held_out = held_out_numbers(50, n, seed)
        return train.tolist(), held_out.tolist()

    train, held_out = split(10, seed=3)
    assert (train, held_out) == split(10, seed=3)
    assert len(train) == 40 and len(held_out) == 10
    assert train == sorted(train) and held_out == sorted(held_out)
    assert sorted(train + held_out) == list(range(50))
    assert held_out != split(10, seed=4)[1]
    assert split(0, seed=3) == (list(range(50)), [])
    for n in (50, 60, -1):
        with pytest.raises(UserError, match=f"cannot hold out {n} of 50 examples"):
            split(n, seed=3)


def test_a_single_example_is_not_held_out() -> None:
    with pytest.raises(UserError, match="only one example"):
        held_out_numbers(1, 1, seed=0)
    with pytest.raises(UserError, match=r"--eval_size: a.jsonl has only one example, so none can be held out"):
        held_out_numbers(1, 1, seed=0, name="a.jsonl")
    train, held_out = held_out_numbers(1, 0, seed=0)
    assert train.tolist() == [0] and not len(held_out)


def test_a_source_that_is_too_small_is_named_with_its_share() -> None:
    text = "--eval_size: cannot hold out 50 of 50 examples of a.jsonl. Give at most 49, or --eval_data_path"
    for whole in (0, 50):
        with pytest.raises(UserError) as caught:
            held_out_numbers(50, 50, seed=0, name="a.jsonl", whole=whole)
        assert str(caught.value) == text
    text = (
        "--eval_size: cannot hold out 60 of 50 examples of a.jsonl, its share of 90. "
        "Give a smaller --eval_size, or --eval_data_path"
    )
    with pytest.raises(UserError) as caught:
        held_out_numbers(50, 60, seed=0, name="a.jsonl", whole=90)
    assert str(caught.value) == text
