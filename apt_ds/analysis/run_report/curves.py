"""Curves of a run: loss, learning rate, kept fraction and ranks by step."""

from __future__ import annotations

import math
from typing import Any

from apt_ds.analysis.run_report.content import Content
from apt_ds.analysis.run_report.spec import Figure, axes, line

SMOOTHED = 40  # a loss of more lines than this gets a running mean


def curves(content: Content) -> list[Figure]:
    """Loss, learning rate, kept fraction and ranks by step. [] before the first step."""
    if not content.metrics:
        return []
    return [loss(content), kept(content), learning_rate(content), ranks_by_step(content)]


def loss(content: Content) -> Figure:
    """Training loss by step, its running mean, and the evaluations."""
    steps, values = column(content, "step"), column(content, "loss")
    dense = len(values) > SMOOTHED
    data = [line("training", steps, values, 0, line={"width": 1 if dense else 2}, opacity=0.6 if dense else 1.0)]
    if dense:
        data.append(line("training, running mean", steps, running_mean(values, len(values) // 20), 1))
    evaluations = [
        (step, content.summary[name]["held_out_loss"])
        for name, step in (("before", 0), ("after", content.total_steps))
        # JSON for a browser has no NaN
        if content.summary is not None and math.isfinite(content.summary.get(name, {}).get("held_out_loss", math.nan))
    ]
    if evaluations:
        x, y = (list(column) for column in zip(*evaluations, strict=True))
        marker = {"symbol": "diamond", "size": 10, "color": "@third", "line": {"color": "@paper", "width": 1}}
        data.append({"type": "scatter", "mode": "markers", "name": "held-out", "x": x, "y": y, "marker": marker})
    return Figure("Loss", data, axes("optimizer step", "loss, nats per token" if is_language(content) else "loss"))


def is_language(content: Content) -> bool:
    """Whether the loss is one of tokens."""
    return "held_out_perplexity" in (content.summary or {}).get("before", {})


def running_mean(values: list[float | None], width: int) -> list[float | None]:
    """Means over the last `width` values that are finite. None where there is none."""
    means: list[float | None] = []
    for end in range(1, len(values) + 1):
        window = [value for value in values[max(0, end - max(width, 2)) : end] if value is not None]
        means.append(sum(window) / len(window) if window else None)
    return means


def learning_rate(content: Content) -> Figure:
    """Learning rate by step."""
    data = [line("learning rate", column(content, "step"), column(content, "learning_rate"))]
    layout = axes("optimizer step", "learning rate", yaxis={"exponentformat": "power", "rangemode": "tozero"})
    return Figure("Learning rate", data, {**layout, "showlegend": False})


def kept(content: Content) -> Figure:
    """Kept fraction of the prunable parameters, with the schedule."""
    steps = column(content, "step")
    data = [
        # a cut before the first step shows as a drop from the base model
        line("kept", [0, *steps], [100, *percent(column(content, "kept"))], 0, line={"shape": "hv"}),
        line("schedule", steps, percent(column(content, "target")), 1),
    ]
    return Figure(
        "Prunable parameters kept",
        data,
        axes("optimizer step", "kept, %", yaxis={"rangemode": "tozero", "range": [0, 105]}),
    )


def ranks_by_step(content: Content) -> Figure:
    """Smallest, mean and largest rank of the adapters by step."""
    steps, ranks = column(content, "step"), column(content, "ranks")
    data = [
        line(name, steps, [rank[key] for rank in ranks], style, line={"shape": "hv"})
        for style, (key, name) in enumerate((("mean", "mean"), ("max", "largest"), ("min", "smallest")))
    ]
    return Figure("Ranks of the adapters", data, axes("optimizer step", "rank", yaxis={"rangemode": "tozero"}))


def column(content: Content, key: str) -> list[Any]:
    """One key of every line of metrics."""
    return [row[key] for row in content.metrics]


def percent(values: list[float]) -> list[float]:
    """Fractions as percentages."""
    return [100 * value for value in values]
