"""Which numbers of blocks a site may keep."""

from __future__ import annotations

import numpy as np
import pytest

from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, kept_sizes
from apt_ds.pruning.budget_search import search
from apt_ds.pruning.limits import Rules, default_align, smallest_sizes
from tests.support import tiny

ALL = ("heads", "neurons", "hidden")


def anatomy(neurons: int = 48) -> Anatomy:
    return anatomy_of(tiny.config("mha", num_hidden_layers=3, intermediate_size=neurons))


def test_default_alignment_is_64_on_real_sizes_and_lets_small_models_meet_their_budget() -> None:
    real = tiny.config("mha", hidden_size=4096, intermediate_size=11008, num_attention_heads=32,
                       num_key_value_heads=32, num_hidden_layers=32)  # fmt: skip
    assert default_align(anatomy_of(real)) == 64
    table = anatomy(neurons=900)
    align = default_align(table)
    assert 1 < align < 64
    budget = 0.7 * table.num_parameters(table.sizes)
    scores = np.random.default_rng(0).random(table.sizes.total()) * table.params_per_block(table.sizes)
    keep = search(scores, table, Rules(("neurons",), "uniform", align, align), budget)
    assert table.num_parameters(kept_sizes(table.sizes, keep)) >= 0.99 * budget


def test_levels_are_multiples_of_the_unit_and_the_whole() -> None:
    rules = Rules(("neurons", "hidden"), "uniform", align_neurons=8, align_hidden=4)
    assert rules.levels("neuron", 30) == [8, 16, 24, 30]
    assert rules.levels("hidden", 12) == [4, 8, 12]
    assert rules.levels("head", 6) == [6]  # heads may not be removed


@pytest.mark.parametrize(("empty", "expected"), [(False, [8, 8, 16, 24]), (True, [0, 8, 16, 24])])
def test_a_level_has_room_for_the_blocks_that_live(empty: bool, expected: list[int]) -> None:
    rules = Rules(("neurons",), "uniform", align_neurons=8, empty=empty)
    assert [rules.level_of("neuron", 24, remaining) for remaining in (0, 8, 9, 24)] == expected


def test_the_smallest_sizes_are_one_unit_of_what_may_be_removed() -> None:
    table = anatomy()
    smallest = smallest_sizes(table, Rules(("neurons", "hidden"), "uniform", align_neurons=16, align_hidden=8))
    heads = table.sizes.counts[0]
    assert smallest.counts == (heads, 16) * 3 and smallest.hidden == 8
    empty = smallest_sizes(table, Rules(ALL, "adaptive", align_neurons=16, align_hidden=8, empty=True))
    assert empty.counts == (0, 0) * 3 and empty.hidden == 8
