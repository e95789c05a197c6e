"""Rank growth of section 5."""

from __future__ import annotations

from apt_ds.pruning.rank_growth import AdapterSize, even, grow_top_half, parameters


def sizes(*ranks: int) -> list[AdapterSize]:
    return [AdapterSize(f"a{i}", rank, 100) for i, rank in enumerate(ranks)]


def test_the_top_half_grows_by_the_budget_ratio() -> None:
    grown = grow_top_half([1.0, 4.0, 3.0, 2.0], sizes(8, 8, 8, 8), budget=1.4 * 3200, max_rank=64)
    assert grown == {"a1": 11, "a2": 11}


def test_an_odd_count_grows_the_larger_half() -> None:
    assert set(grow_top_half([3.0, 2.0, 1.0], sizes(4, 4, 4), budget=2400, max_rank=64)) == {"a0", "a1"}


def test_max_rank_bounds_and_whole_ratios_lose_nothing() -> None:
    assert grow_top_half([1.0, 0.0], sizes(8, 8), budget=16 * 1600, max_rank=64) == {"a0": 64}
    for rank in range(1, 40):
        assert grow_top_half([1.0, 0.0], sizes(rank, rank), budget=3 * 200 * rank, max_rank=999) == {"a0": 3 * rank}


def test_no_room_no_growth() -> None:
    assert grow_top_half([1.0, 2.0], sizes(8, 8), budget=1600, max_rank=64) == {}


def test_growth_stays_in_the_budget_and_ties_go_to_the_first() -> None:
    before = sizes(8, 6, 4, 8, 2)
    grown = grow_top_half([1.0] * 5, before, budget=2 * parameters(before), max_rank=64)
    after = [AdapterSize(s.path, grown.get(s.path, s.rank), s.per_rank) for s in before]
    assert set(grown) == {"a0", "a1", "a2"}
    assert parameters(after) <= 2 * parameters(before)


def test_even_growth_raises_all_alike_and_meets_the_budget() -> None:
    before = sizes(8, 6, 4)
    grown = even(before, budget=1.5 * parameters(before), max_rank=11)
    assert grown == {"a0": 11, "a1": 9, "a2": 6}
    assert even(before, budget=parameters(before), max_rank=64) == {}
