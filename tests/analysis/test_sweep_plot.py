"""The picture of a sweep: its panels, lines and labels."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from apt_ds.analysis import plots
from apt_ds.analysis.sweep_plot import COLOURS, GAP, HIGH, LOW, Line, Panel, apart, lines_of, panels
from apt_ds.config.errors import UserError


def row(method: str, removed: float, **figures: Any) -> dict[str, Any]:
    return {"method": method, "removed": removed, "text": "wiki.txt", **figures}


ROWS = [
    row("lora", 0.0, **{"perplexity": 20.0, "perplexity:c4.txt[50%:]": 30.0, "local:mean": 0.7}),
    row("apt", 0.5, **{"perplexity": 40.0, "perplexity_std": 2.0, "perplexity:c4.txt[50%:]": 60.0, "local:mean": 0.5}),
    row("apt", 0.25, **{"perplexity": 30.0, "perplexity_std": None, "local:mean": 0.6, "local:mean_std": 0.01}),
    row("flap", 0.25, perplexity=float("inf"), held_out_loss=3.0),
    row("flap", 0.5, perplexity=50.0),
]


def test_every_figure_of_quality_has_a_panel() -> None:
    assert panels(ROWS) == [
        Panel("perplexity", "perplexity of wiki.txt"),
        Panel("perplexity:c4.txt[50%:]", "perplexity of c4.txt[50%:]"),
        Panel("held_out_loss", "held-out loss"),
        Panel("local:mean", "mean accuracy of the tasks, %", 100),
    ]
    with pytest.raises(UserError, match="no figure of quality of a pruned model"):
        panels(ROWS[:1])


def test_a_line_has_the_finite_points_of_a_method_from_the_largest() -> None:
    assert lines_of(ROWS, Panel("perplexity", "")) == {
        "apt": Line([0.75, 0.5], [30.0, 40.0], [0.0, 2.0]),
        "flap": Line([0.5], [50.0], [0.0]),
    }
    (line,) = lines_of(ROWS, Panel("local:mean", "", 100)).values()
    assert line.mean == pytest.approx([60.0, 50.0]) and line.deviation == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("places", [[0.5], [0.5, 0.5, 0.5], [0.99, 0.0, 0.98, 1.3, -1.0], [0.5] * 40])
def test_labels_move_apart_and_keep_their_order(places: list[float]) -> None:
    moved = apart(places)
    assert all(LOW - 1e-9 <= place <= HIGH + 1e-9 for place in moved)
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(GAP, (HIGH - LOW) / max(1, len(places) - 1))
    assert all(moved[b] - moved[a] >= gap - 1e-9 for a, b in pairwise(order))
    assert apart([0.2, 0.8]) == [0.2, 0.8]


def test_the_command_draws_all_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    table, picture = tmp_path / "table.json", tmp_path / "picture.png"
    table.write_text(json.dumps(ROWS), encoding="utf8")
    drawn: list[Any] = []
    monkeypatch.setattr(plots.pyplot(), "close", drawn.append)
    monkeypatch.setattr(sys, "argv", ["plots", "--table", str(table), "--picture", str(picture), "--sweep"])
    plots.main()
    assert picture.read_bytes().startswith(b"\x89PNG")
    first = drawn[0].axes[0]
    labels = {text.get_text(): text.get_color() for text in first.texts}
    assert labels == {"lora, not pruned": "#555555", "apt": COLOURS[0], "flap": COLOURS[1]}
    assert [axes.get_title() for axes in drawn[0].axes] == [panel.title for panel in panels(ROWS)]
    assert first.get_yscale() == "log" and drawn[0].axes[3].get_yscale() == "linear"
    drawn[0].canvas.draw()
    low, high = first.get_ylim()
    shown = [label.get_text() for label in first.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert shown == ["20", "30", "50"] and not any(label.get_text() for label in first.yaxis.get_minorticklabels())
