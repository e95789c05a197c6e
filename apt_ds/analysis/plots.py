"""Pictures of a comparison. Requires matplotlib (the extra [eval]).

`python -m apt_ds.analysis.plots --table FILE --picture FILE` draws perplexity against the size of the model, from the
`table.json` of a comparison. `--sweep` draws all figures of quality.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from apt_ds.config import cli
from apt_ds.config.errors import UserError

POINT = 300.0  # area of LoRA's point, in square points
Row = dict[str, Any]


def pyplot() -> Any:
    """matplotlib.pyplot, drawing into files. Raises ModuleNotFoundError where matplotlib is not installed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def quality_against_speed(rows: list[Row], path: Path) -> None:
    """Draw one point per row: inference speed relative to LoRA, and perplexity. The area shows inference memory.

    Args:
        rows: with finite `inference_speed` and `perplexity`.
        path: the picture.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows:
        size = POINT * (row.get("inference_memory") or 1.0)
        axes.scatter(row["inference_speed"], row["perplexity"], s=size, alpha=0.6)
        label = f"{row['method']} {100 * row['removed']:.0f} %"
        axes.annotate(label, (row["inference_speed"], row["perplexity"]), xytext=(8, 4), textcoords="offset points")
    axes.set_yscale("log")
    axes.set_xlabel("inference speed, LoRA = 1")
    axes.set_ylabel("corpus perplexity (lower is better)")
    axes.set_title("Quality against inference speed; area: inference memory")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def lines_of(rows: list[Row], title: str = "") -> dict[str, list[tuple[float, float, float]]]:
    """The points of each method: fraction kept, perplexity, and its deviation over seeds (0 where it is unknown).

    Rows without a finite perplexity are left out.

    Raises:
        UserError: no row has one.
    """
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        perplexity = row.get("perplexity")
        if perplexity is not None and math.isfinite(perplexity):
            point = (1 - row["removed"], perplexity, row.get("perplexity_std") or 0.0)
            lines.setdefault(row["method"], []).append(point)
    if not lines:
        raise UserError(f"{title or 'the table'} has no finite perplexity: compare.py needs --perplexity_path")
    return {method: sorted(points) for method, points in lines.items()}


def quality_against_size(lines: dict[str, list[tuple[float, float, float]]], path: Path, title: str) -> None:
    """Draw one line per method: perplexity against the fraction of prunable parameters that the model keeps.

    Args:
        lines: from `lines_of`.
        path: the picture.
        title: of the picture.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for method, points in lines.items():
        kept, perplexity, deviation = zip(*points, strict=True)
        axes.errorbar([100 * k for k in kept], perplexity, deviation, marker="o", capsize=3, label=method)
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("prunable parameters kept, %")
    axes.set_ylabel("perplexity (lower is better)")
    axes.set_title(title)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parser() -> cli.Parser:
    """The options of the command."""
    options = cli.Parser("python -m apt_ds.analysis.plots --table FILE --picture FILE [--sweep] [--title TEXT]")
    options.add_argument("--table", required=True, help="table.json of a finished comparison")
    options.add_argument("--picture", required=True, help="the PNG file to write")
    options.add_argument("--title", default="", help="title of the picture")
    sweep = "a panel for each figure of quality, each with a line and a band over seeds for each method"
    options.add_argument("--sweep", action="store_true", help=sweep)
    return options


def main() -> None:
    """Draw the picture that the command line asks for."""
    own = parser().read(sys.argv[1:])
    try:
        rows = json.loads(Path(own.table).read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--table {own.table!r} cannot be read: {error}; give the table.json of compare.py") from None
    try:
        if own.sweep:
            from apt_ds.analysis import sweep_plot

            sweep_plot.draw(rows, Path(own.picture), own.title or "Quality after pruning")
        else:
            quality_against_size(lines_of(rows, own.table), Path(own.picture), own.title or "Perplexity after pruning")
    except ModuleNotFoundError as error:
        raise UserError(f"--picture requires {error.name}: pip install 'apt_ds[eval]'") from None


if __name__ == "__main__":
    from apt_ds.runtime import exit_status

    exit_status.main(main)
