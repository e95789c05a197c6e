"""Figures of time and memory."""

from __future__ import annotations

from apt_ds.analysis.run_report.content import Content, Json
from apt_ds.analysis.run_report.curves import column
from apt_ds.analysis.run_report.spec import Figure, axes, bar_layout, bars, line
from apt_ds.analysis.run_report.tables import PHASES, TIMES

MB = 1e-6


def time_figures(content: Content) -> list[Figure]:
    """The time of a step by part and by step, and the time of the run by part."""
    profile: Json = (content.summary or {}).get("profile", {})
    figures = [step_parts(profile)] if profile else []
    if content.metrics:
        seconds = [row["seconds"]["step"] for row in content.metrics]
        layout = {**axes("optimizer step", "seconds", yaxis={"rangemode": "tozero"}), "showlegend": False}
        figures.append(Figure("Time of each step", [line("step", column(content, "step"), seconds)], layout))
    if content.summary is not None:
        training = content.summary["training"]
        data = bars({label: training[key] for key, label in TIMES.items()}, "run", 0, "%{y}: %{x:.2f} s")
        figures.append(Figure("Time of the run", [data], bar_layout("seconds", len(TIMES))))
    return figures


def step_parts(profile: Json) -> Figure:
    """Median milliseconds of each part of a step, before the first cut and after the last."""
    names = {"dense": "before the first cut", "cut": "after the last cut"}
    used = [
        part
        for part in next(iter(profile.values()))["seconds"]
        if any(figures["share"][part] >= 0.001 for figures in profile.values())
    ]
    data = [
        bars({part: 1e3 * figures["seconds"][part] for part in used}, names[when], number, "%{y}: %{x:.1f} ms")
        for number, (when, figures) in enumerate(profile.items())
    ]
    layout = {**bar_layout("milliseconds", len(used) * len(data)), "showlegend": True}
    return Figure("Time of a step by part", data, layout, "Medians. Parts below 0.1 % are in the table alone.")


def memory_figures(content: Content) -> list[Figure]:
    """Peak memory by phase and by step."""
    peaks: Json = (content.summary or {}).get("training", {}).get("memory_by_phase", {})
    figures = []
    if peaks:
        named = {label: peaks[phase] * MB for phase, label in PHASES.items() if phase in peaks}
        data = bars(named, "peak", 0, "%{y}: %{x:,.0f} MB")
        figures.append(Figure("Peak memory by phase", [data], bar_layout("MB", len(named))))
    if content.metrics:
        values = [peak * MB for peak in column(content, "peak_memory_bytes")]
        layout = {**axes("optimizer step", "MB", yaxis={"rangemode": "tozero"}), "showlegend": False}
        data = line("peak", column(content, "step"), values)
        figures.append(Figure("Peak memory by step, with the process itself", [data], layout))
    return figures
