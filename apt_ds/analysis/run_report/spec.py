"""The figures of a run report, as plotly's JSON.

Colours are names that begin with @, which the page replaces by those of its light or dark theme. Lines differ by dash
and marker too, and bars by pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

STYLES = (
    {"color": "@first", "dash": "solid"},
    {"color": "@second", "dash": "dash"},
    {"color": "@third", "dash": "dot"},
)
# the upper half of viridis: dark text can be read on all of it
SCALE = [[0, "#21918c"], [0.25, "#28ae80"], [0.5, "#5ec962"], [0.75, "#addc30"], [1, "#fde725"]]
DARK_TEXT = "#10151a"
LARGEST_TEXT = 40  # more rows than this have no numbers in the cells


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: its title.
        data, layout: as plotly takes them.
        note: what the picture shows, in a sentence.
    """

    name: str
    data: list[Json]
    layout: Json
    note: str = ""

    def spec(self) -> Json:
        """What the page gives to plotly."""
        return {"data": self.data, "layout": self.layout}


def axes(x: str, y: str, height: int = 300, **more: Any) -> Json:
    """The layout of a figure with two titled axes."""
    axis = {"gridcolor": "@grid", "zerolinecolor": "@grid", "linecolor": "@muted", "automargin": True}
    return {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 12, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "@ink"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@muted", "font": {"color": "@ink"}},
        "xaxis": {**axis, "title": {"text": x, "standoff": 8}, **more.pop("xaxis", {})},
        "yaxis": {**axis, "title": {"text": y, "standoff": 8}, **more.pop("yaxis", {})},
        **more,
    }


def line(name: str, x: list[Any], y: list[Any], style: int = 0, **more: Any) -> Json:
    """A line. A dash tells it from others without its colour."""
    look = {**STYLES[style], "width": 2, **more.pop("line", {})}
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": look, **more}


def heat_map(x: list[str], y: list[str], z: list[Any], text: list[Any], title: str) -> Json:
    """A heat map, with numbers in its cells where they can be read."""
    data = {
        "type": "heatmap",
        "x": x,
        "y": y,
        "z": z,
        "text": text,
        "colorscale": SCALE,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }
    return data | (
        {"texttemplate": "%{text}", "textfont": {"size": 10, "color": DARK_TEXT}} if len(y) <= LARGEST_TEXT else {}
    )


def heat_layout(x: str, y: str, rows: int) -> Json:
    """The layout of a heat map with so many rows, the first row on top."""
    height = min(900, max(200, 90 + 15 * rows))
    return axes(
        x,
        y,
        height,
        xaxis={"type": "category", "showgrid": False},
        yaxis={"type": "category", "autorange": "reversed", "showgrid": False, "dtick": max(1, -(-rows // 40))},
    )


def bars(values: dict[str, float], name: str, number: int, hover: str) -> Json:
    """Horizontal bars. The second group of a figure has stripes."""
    pattern = {"shape": "/", "fillmode": "overlay", "fgcolor": "@paper", "solidity": 0.3} if number else {"shape": ""}
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": list(values.values()),
        "y": list(values),
        "marker": {"color": STYLES[number]["color"], "pattern": pattern},
        "hovertemplate": f"{hover}<extra></extra>",
    }


def bar_layout(unit: str, count: int) -> Json:
    """The layout of a figure of horizontal bars, the first bar on top."""
    height = max(190, 100 + 24 * count)
    layout = axes(unit, "", height, xaxis={"tickformat": ",d"}, yaxis={"autorange": "reversed", "showgrid": False})
    return {**layout, "bargap": 0.3, "showlegend": False}
