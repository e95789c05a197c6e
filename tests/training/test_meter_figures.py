"""The cost of training at one size."""

from __future__ import annotations

from apt_ds.training.meter_figures import size_figures


def test_the_first_step_counts_only_where_it_is_the_only_one() -> None:
    assert size_figures([9.0, 1.0, 3.0], 10, 4, 12) == {
        "step_seconds": 2.0,
        "peak_memory_bytes": 10,
        "peak_added_bytes": 4,
        "peak_reserved_bytes": 12,
    }
    assert size_figures([9.0], 10, 4, 12)["step_seconds"] == 9.0


def test_no_step_has_no_figures_and_the_cpu_reserves_nothing() -> None:
    assert set(size_figures([], 10, 4, 12).values()) == {None}
    assert size_figures([1.0], 10, 4, 0)["peak_reserved_bytes"] is None
