"""Which examples are held out."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import Example
from apt_ds.data.splitting import held_out_numbers, split_held_out


def test_split_is_deterministic_and_leaves_training_data() -> None:
    examples = [Example.from_instruction(f"Say {i}.", "", str(i)) for i in range(50)]
    train, held_out = split_held_out(examples, 10, seed=3)
    assert (train, held_out) == split_held_out(examples, 10, seed=3)
    assert len(train) == 40 and len(held_out) == 10
    assert sorted(train + held_out, key=lambda e: int(e.output)) == examples
    assert held_out != split_held_out(examples, 10, seed=4)[1]
    assert split_held_out(examples, 0, seed=3) == (examples, [])
    for n in (50, 60, -1):
        with pytest.raises(UserError, match=f"cannot hold out {n} of 50 examples"):
            split_held_out(examples, n, seed=3)


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
