"""The pictures of a comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from apt_ds.analysis import plots
from apt_ds.config.errors import UserError
from tests.support.paths import ROOT

ROWS = [
    {"method": "apt", "removed": 0.5, "perplexity": 20.0, "perplexity_std": 1.5},
    {"method": "lora", "removed": 0.0, "perplexity": 10.0, "perplexity_std": None},
    {"method": "apt", "removed": 0.25, "perplexity": 15.0},
    {"method": "apt", "removed": 0.75, "perplexity": float("inf")},
    {"method": "random", "removed": 0.75, "perplexity": None},
]


def test_a_line_has_the_finite_points_of_a_method_in_order() -> None:
    assert plots.lines_of(ROWS) == {"apt": [(0.5, 20.0, 1.5), (0.75, 15.0, 0.0)], "lora": [(1.0, 10.0, 0.0)]}
    with pytest.raises(UserError, match="--perplexity_path"):
        plots.lines_of(ROWS[3:])


def test_the_committed_figures_can_be_drawn() -> None:
    rows = json.loads((ROOT / "launchers" / "results" / "smollm2.json").read_text(encoding="utf8"))
    lines = plots.lines_of(rows)
    assert lines["apt"] == [(0.5, 105.3, 2.1), (0.7, 58.8, 2.9)] and set(lines) > {"lora", "full", "prune_lora"}
    assert (ROOT / "launchers" / "results" / "smollm2.png").stat().st_size < 60_000


def test_the_command_draws_or_says_what_it_requires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, picture = tmp_path / "table.json", tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["plots", "--table", str(table), "--picture", str(picture)])
    with pytest.raises(UserError, match=r"cannot be read: .* give the table.json of compare.py"):
        plots.main()
    table.write_text(json.dumps(ROWS[:3]), encoding="utf8")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(UserError, match=r"--picture requires matplotlib: pip install 'apt_ds\[eval\]'"):
            plots.main()
    pytest.importorskip("matplotlib")
    plots.main()
    assert picture.read_bytes().startswith(b"\x89PNG")
