"""Curves of a run report."""

from __future__ import annotations

from dataclasses import replace

from apt_ds.analysis.run_report.curves import curves, loss, running_mean
from tests.support.report_content import finished, interrupted, line


def test_each_curve_has_every_logged_step() -> None:
    figures = curves(finished())
    assert [figure.name for figure in figures] == [
        *("Loss", "Prunable parameters kept", "Learning rate", "Ranks of the adapters")
    ]
    lines = [trace for figure in figures for trace in figure.data if trace["mode"] == "lines"]
    assert all(trace["x"][-4:] == [1, 2, 3, 4] for trace in lines)
    # the base model comes before the first step
    assert (figures[1].data[0]["x"], figures[1].data[0]["y"]) == ([0, 1, 2, 3, 4], [100, 100, 100, 60, 60])
    assert curves(replace(finished(), metrics=[])) == []


def test_lines_of_a_figure_differ_without_colour() -> None:
    for figure in curves(finished()):
        looks = [(trace["mode"], trace.get("line", {}).get("dash")) for trace in figure.data]
        assert len(set(looks)) == len(looks), figure.name


def test_a_loss_that_is_not_finite_is_a_gap_and_evaluations_are_markers() -> None:
    training, held_out = loss(finished()).data
    assert training["y"] == [2.0, None, 1.5, 1.0]
    assert (held_out["x"], held_out["y"]) == ([0, 4], [2.0, 2.5])
    assert len(loss(interrupted()).data) == 1
    diverged = finished()
    assert diverged.summary is not None
    diverged.summary["after"]["held_out_loss"] = float("nan")
    assert loss(diverged).data[1]["y"] == [2.0]


def test_a_long_loss_has_a_running_mean() -> None:
    content = replace(interrupted(), metrics=[line(step, float(step % 2)) for step in range(1, 101)])
    mean = loss(content).data[1]
    assert len(mean["y"]) == 100 and abs(mean["y"][-1] - 0.5) < 0.11
    assert running_mean([1.0, None, 3.0], 2) == [1.0, 1.0, 3.0] and running_mean([None], 2) == [None]
