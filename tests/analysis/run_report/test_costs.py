"""Figures of time and memory of a run report."""

from __future__ import annotations

from dataclasses import replace

from apt_ds.analysis.run_report import costs
from tests.support.report_content import finished, interrupted


def test_parts_of_a_step_differ_by_pattern() -> None:
    (figure,) = costs.step_parts(finished())
    assert [trace["y"] for trace in figure.data] == [["forward", "backward"]] * 2
    assert figure.data[0]["x"] == [200, 300]
    assert [trace["marker"]["pattern"]["shape"] for trace in figure.data] == ["", "/"]


def test_a_finished_run_shows_its_times_and_memory() -> None:
    content = finished()
    assert costs.run_times(content)[0].data[0]["x"] == [2.0, 0.5, 0.5, 1.0]
    assert costs.step_times(content)[0].data[0]["y"] == [0.5] * 4
    phases = costs.phase_memory(content)[0].data[0]
    assert dict(zip(phases["y"], phases["x"], strict=True)) == {"loading the model": 2, "steps at the final size": 1}
    assert costs.step_memory(content)[0].data[0]["y"] == [3.0] * 4


def test_an_interrupted_run_has_what_its_steps_show() -> None:
    content = interrupted()
    for absent in (costs.step_parts, costs.run_times, costs.phase_memory):
        assert absent(content) == []
    assert costs.step_times(content) and costs.step_memory(content)
    empty = replace(content, metrics=[])
    assert costs.step_times(empty) == [] and costs.step_memory(empty) == []
