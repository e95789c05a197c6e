"""Figures of time and memory. A figure that the files have no numbers for is absent."""

from __future__ import annotations

from apt_ds.analysis.run_report.content import Content, Json
from apt_ds.analysis.run_report.curves import column
from apt_ds.analysis.run_report.spec import Figure, axes, bar_layout, bars, line
from apt_ds.analysis.run_report.tables import PHASES, TIMES

MB = 1e-6
SMALLEST_SHARE = 0.001  # a smaller part of a step has no bar


def step_parts(content: Content) -> list[Figure]:
    """Median milliseconds of each part of a step, before the first cut and after the last."""
    profile: Json = (content.summary or {}).get("profile", {})
    if not profile:
        return []
    names = {"dense": "before the first cut", "cut": "after the last cut"}
    used = [
        part
        for part in next(iter(profile.values()))["seconds"]
        if any(figures["share"][part] >= SMALLEST_SHARE for figures in profile.values())
    ]
    data = [
        bars({part: 1e3 * figures["seconds"][part] for part in used}, names[when], number, "%{y}: %{x:,.1f} ms")
        for number, (when, figures) in enumerate(profile.items())
    ]
    layout = {**bar_layout("median time, milliseconds", len(used) * len(data)), "showlegend": True}
    return [Figure("Time of a step by part", data, layout, "Parts below 0.1 % of the step are in the table alone.")]


def step_times(content: Content) -> list[Figure]:
    """Seconds of every logged step."""
    if not content.metrics:
        return []
    seconds = [row["seconds"]["step"] for row in content.metrics]
    layout = {**axes("optimizer step", "time, seconds", yaxis={"rangemode": "tozero"}), "showlegend": False}
    return [Figure("Time of each step", [line("step", column(content, "step"), seconds)], layout)]


def run_times(content: Content) -> list[Figure]:
    """Seconds of the whole run by part."""
    if content.summary is None:
        return []
    training = content.summary["training"]
    data = bars({label: training[key] for key, label in TIMES.items()}, "run", 0, "%{y}: %{x:,.2f} s")
    return [Figure("Time of the run", [data], bar_layout("time, seconds", len(TIMES)))]


def phase_memory(content: Content) -> list[Figure]:
    """Peak memory by phase."""
    peaks: Json = (content.summary or {}).get("training", {}).get("memory_by_phase", {})
    named = {label: peaks[phase] * MB for phase, label in PHASES.items() if phase in peaks}
    if not named:
        return []
    data = bars(named, "peak", 0, "%{y}: %{x:,.0f} MB")
    return [Figure("Peak memory by phase", [data], bar_layout("peak memory, MB", len(named)))]


def step_memory(content: Content) -> list[Figure]:
    """Peak memory of every logged step, with the process itself."""
    if not content.metrics:
        return []
    values = [peak * MB for peak in column(content, "peak_memory_bytes")]
    layout = axes("optimizer step", "peak memory, MB", yaxis={"rangemode": "tozero", "tickformat": ",d"})
    data = line("peak", column(content, "step"), values)
    name = "Peak memory by step, with the process itself"
    return [Figure(name, [data], {**layout, "showlegend": False})]
