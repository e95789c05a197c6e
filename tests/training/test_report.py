"""The text that a run ends with."""

from __future__ import annotations

from apt_ds.training.report import render
from apt_ds.training.summary_schema import Summary


def summary(reserved: int | None, base: int = 500_000_000) -> Summary:
    """A summary of a run whose peak memory halves while what is reserved stays."""
    whole = {"seconds": 3.0, "steps_seconds": 2.0, "scoring_seconds": 0.5, "rebuilds_seconds": 0.5}
    whole |= {"evaluation_seconds": 1.0, "evaluation_peak_bytes": None, "history": []}
    evaluation = {"parameters": 10, "held_out_loss": 2.0, "step_seconds": 1.0, "peak_reserved_bytes": reserved}
    before, after = 2_000_000_000, 1_000_000_000
    return {  # type: ignore[return-value]
        "version": 1,
        "before": evaluation | {"peak_memory_bytes": before, "peak_added_bytes": before - base},
        "after": evaluation | {"peak_memory_bytes": after, "peak_added_bytes": after - base},
        "data": {"train": 1, "held_out": 1, "dropped": 0, "steps": 1},
        "pruning": {"kept": 0.5, "target_kept": 0.5, "sizes": {}},
        "training": whole
        | {"peak_memory_bytes": 2_000_000_000, "peak_reserved_bytes": reserved, "base_memory_bytes": base},
    }


def test_reserved_memory_has_a_row_on_a_gpu() -> None:
    lines = render(summary(2_500_000_000, base=0)).splitlines()
    (used,) = [line for line in lines if line.startswith("  peak memory, MB")]
    (reserved,) = [line for line in lines if line.startswith("  the same, reserved, MB")]
    assert used.split()[-3:] == ["2,000", "1,000", "0.500"] and reserved.split()[-3:] == ["2,500", "2,500", "1.000"]
    assert lines[-1].endswith("peak memory of training 2,000 MB, 2,500 MB reserved")


def test_the_cpu_reserves_nothing() -> None:
    text = render(summary(None))
    assert "reserved" not in text and "peak memory of training 2,000 MB" in text


def test_the_process_itself_is_not_part_of_the_savings() -> None:
    lines = render(summary(None)).splitlines()
    (used,) = [line for line in lines if line.startswith("  peak memory, MB")]
    assert used.split()[-3:] == ["1,500", "500", "0.333"]
    assert lines[-1].endswith("2,000 MB with 500 MB of the process itself, which the table leaves out")
