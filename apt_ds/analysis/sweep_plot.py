"""The picture of a sweep: quality against kept size, a panel for each figure, a line with a band for each method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from apt_ds.analysis.plots import pyplot
from apt_ds.analysis.result_table import COLUMNS, columns
from apt_ds.config.errors import UserError

Row = dict[str, Any]

# of Okabe and Ito, which people with colour-blindness can tell apart. Markers differ too
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
TICKS = (1.0, 2.0, 3.0, 5.0, 7.0)  # labels of a logarithmic axis, in each decade
LOW, HIGH, GAP = 0.03, 0.97, 0.062  # places of labels and the gap between them, as fractions of a panel's height


class Panel(NamedTuple):
    """One figure of the table: its column, its title, and what its values are multiplied by."""

    column: str
    title: str
    scale: float = 1.0

    @property
    def log(self) -> bool:
        """Whether the axis is logarithmic."""
        return self.column.startswith("perplexity")


class Line(NamedTuple):
    """The rows of one method, by decreasing size: fraction kept, mean over seeds, and its deviation."""

    kept: list[float]
    mean: list[float]
    deviation: list[float]


def panels(rows: list[Row]) -> list[Panel]:
    """The figures of quality that pruned models have: perplexities, held-out loss, the mean of the tasks.

    Raises:
        UserError: the table has none.
    """
    headers = columns(rows)
    shown = [Panel(name, header) for name, (header, _) in headers.items() if name.partition(":")[0] == "perplexity"]
    shown += [Panel("held_out_loss", COLUMNS["held_out_loss"][0])] if "held_out_loss" in headers else []
    shown += [Panel("local:mean", "mean accuracy of the tasks, %", 100)] if "local:mean" in headers else []
    shown = [panel for panel in shown if lines_of(rows, panel)]
    if not shown:
        raise UserError("the table has no figure of quality of a pruned model: give the table.json of a sweep")
    return shown


def lines_of(rows: list[Row], panel: Panel) -> dict[str, Line]:
    """The line of each method that prunes. Values that are absent or not finite are left out."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        value = row.get(panel.column)
        if row["removed"] > 0 and value is not None and math.isfinite(value):
            spread = panel.scale * (row.get(f"{panel.column}_std") or 0.0)
            points.setdefault(row["method"], []).append((1 - row["removed"], panel.scale * value, spread))
    ordered = {method: sorted(triples, reverse=True) for method, triples in points.items()}
    return {method: Line(*map(list, zip(*triples, strict=True))) for method, triples in ordered.items()}


def apart(places: list[float]) -> list[float]:
    """Places moved so that neighbours are at least `GAP` apart, or less where they do not fit.

    They keep their order and stay from `LOW` to `HIGH`.
    """
    gap = min(GAP, (HIGH - LOW) / max(1, len(places) - 1))
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [0.0] * len(places)
    lowest = LOW
    for i in order:
        moved[i] = lowest = max(places[i], lowest)
        lowest += gap
    highest = HIGH
    for i in reversed(order):
        moved[i] = highest = min(moved[i], highest)
        highest -= gap
    return moved


def draw(rows: list[Row], path: Path, title: str) -> None:
    """Draw all panels into one picture.

    Args:
        rows: of `table.json`.
        path: the picture.
        title: of the picture.

    Raises:
        UserError: the table has no figure of quality.
        ModuleNotFoundError: matplotlib is not installed.
    """
    shown = panels(rows)
    methods = list(dict.fromkeys(row["method"] for row in rows if row["removed"] > 0))
    plt = pyplot()
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    figure, grid = plt.subplots(down, across, figsize=(5.2 * across, 3.5 * down), squeeze=False, layout="constrained")
    for axes, panel in zip(grid.flat, shown, strict=False):
        _draw_panel(axes, panel, rows, methods)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw_panel(axes: Any, panel: Panel, rows: list[Row], methods: list[str]) -> None:
    """One panel with its lines, the value of the model that is not pruned, and the names at the ends of lines."""
    lines = lines_of(rows, panel)
    for method, line in lines.items():
        number = methods.index(method)
        colour = COLOURS[number % len(COLOURS)]
        kept = [100 * value for value in line.kept]
        axes.plot(kept, line.mean, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4, linewidth=1.5)
        low, high = (
            [mean + sign * spread for mean, spread in zip(line.mean, line.deviation, strict=True)] for sign in (-1, 1)
        )
        axes.fill_between(kept, low, high, color=colour, alpha=0.15, linewidth=0)
    dense = next((row for row in rows if row["removed"] == 0 and row.get(panel.column) is not None), None)
    if dense is not None:
        axes.axhline(panel.scale * dense[panel.column], color="#777777", linestyle="--", linewidth=1)
    if panel.log:
        axes.set_yscale("log")
        # a few numbers a decade: all of them would overlap where a line spans several
        axes.yaxis.get_major_locator().set_params(subs=TICKS)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_formatter("")
        axes.tick_params(axis="y", which="both", labelsize=8)
    most, least = (100 * pick(value for line in lines.values() for value in line.kept) for pick in (max, min))
    margin = 0.05 * max(most - least, 1.0)
    axes.set_xlim(most + margin, least - 9 * margin)
    axes.set_xticks(sorted({round(100 * value) for line in lines.values() for value in line.kept}))
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.set_xlabel("prunable parameters kept, %")
    axes.set_title(panel.title, fontsize=10)
    if dense is not None:
        at = (most, panel.scale * dense[panel.column])
        axes.annotate(f"{dense['method']}, not pruned", at, fontsize=7, color="#555555", va="bottom")
    _name_lines(axes, lines, methods, least - margin)


def _name_lines(axes: Any, lines: dict[str, Line], methods: list[str], x: float) -> None:
    """Write each method's name at the end of its line, in its colour. Names that would overlap move apart."""
    axes.autoscale_view(scalex=False)
    bottom, top = axes.get_ylim()
    scale = math.log if axes.get_yscale() == "log" else float
    span = scale(top) - scale(bottom)
    places = apart([(scale(line.mean[-1]) - scale(bottom)) / span for line in lines.values()])
    for (method, line), place in zip(lines.items(), places, strict=True):
        colour = COLOURS[methods.index(method) % len(COLOURS)]
        axes.annotate(
            method,
            xy=(100 * line.kept[-1], line.mean[-1]),
            xytext=(x, place),
            textcoords=("data", "axes fraction"),
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5},
            fontsize=7,
            color=colour,
            va="center",
        )
