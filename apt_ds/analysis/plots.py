"""Pictures of what was measured. Needs matplotlib (the extra [eval])."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

POINT = 300.0  # area of LoRA's point, in square points


def quality_against_speed(rows: list[dict[str, Any]], path: Path) -> None:
    """One point per row: inference speed relative to LoRA, and perplexity. The area shows inference memory.

    rows: with finite `inference_speed` and `perplexity`.
    """
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
