"""The table of a comparison: what each run left, runs of one row averaged, costs as ratios to a baseline."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_ds.config import OPTIONS
from apt_ds.journal import write_json
from apt_ds.milestones import NEAR


@dataclass(frozen=True)
class Trial:
    """One run: a method at a sparsity with a seed and its own options, and its folder."""

    method: str
    sparsity: float
    seed: int
    folder: Path
    setting: tuple[tuple[str, str], ...] = ()

    @property
    def row(self) -> tuple[object, ...]:
        """What runs of one row of the table have in common: all but the seed."""
        return self.method, self.sparsity, self.setting


def tabulate(trials: list[Trial], speeds: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per method, sparsity and setting: quality as mean over seeds (and its deviation), costs as ratios."""
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys(trial.row for trial in trials):
        members = [trial for trial in trials if trial.row == key]
        summaries = [json.loads((t.folder / "summary.json").read_text(encoding="utf8")) for t in members]
        first = members[0]
        row: dict[str, Any] = {"method": first.method, "removed": 1 - summaries[0]["pruning"]["kept"]}
        row |= dict(first.setting) | {"seeds": len(members)}
        for name, keys in QUALITY.items():
            put(row, name, [summary.get(keys[0], {}).get(keys[1]) for summary in summaries])
        marks = [t.folder / "mmlu.json" for t in members]
        if all(mark.exists() for mark in marks):
            put(row, "mmlu", [json.loads(mark.read_text(encoding="utf8"))["accuracy"] for mark in marks])
        after = [summary["after"] for summary in summaries]
        row["whole_seconds"] = statistics.median(summary["training"]["seconds"] for summary in summaries)
        row["histories"] = [summary["training"]["history"] for summary in summaries]
        row["step_seconds"] = statistics.median(a["step_seconds"] for a in after)
        row["train_bytes"] = max(a["peak_memory_bytes"] for a in after)
        row |= speeds.get(first.folder.name, {})
        rows.append(row)
    normalize(rows)
    for row in rows:
        del row["histories"]
    return rows


# column: where summary.json holds it
QUALITY = {
    "dev_score": ("after", "score"),
    "perplexity_cut": ("after_cut", "corpus_perplexity"),
    "held_out_loss_cut": ("after_cut", "held_out_loss"),
    "perplexity": ("after", "corpus_perplexity"),
    "held_out_loss": ("after", "held_out_loss"),
}
# ratio column: what it is made of
COSTS = {
    "train_time": "step_seconds",
    "near_time": "near_seconds",
    "train_memory": "train_bytes",
    "inference_speed": "decode_tokens_per_second",
    "inference_memory": "inference_bytes",
}
ENCODER_COSTS = {"inference_speed": "passes_per_second"}


def put(row: dict[str, Any], name: str, values: list[float | None]) -> None:
    """Mean and, with several seeds, standard deviation; nothing where a value is missing."""
    if any(value is None for value in values):
        return
    row[name] = statistics.mean(values)
    if len(values) > 1:
        row[f"{name}_std"] = statistics.stdev(values)


def normalize(rows: list[dict[str, Any]]) -> None:
    """Add the ratios to full fine-tuning where a task has a score, else to LoRA, if that was run.

    `near_time` is the time to come within 97 % of full fine-tuning's best score, at the size aimed at, as the paper
    measures it for tasks with a score.
    """
    for row in rows:
        if "forward_seconds" in row:
            row["passes_per_second"] = 1 / row["forward_seconds"]
    scored = all("dev_score" in row for row in rows)
    base = next((row for row in rows if row["method"] == ("full" if scored else "lora")), None)
    if base is None:
        return
    if scored:
        best = statistics.mean(max(entry["score"] for entry in history) for history in base["histories"] if history)
        for row in rows:
            near = [first_near(history, best) for history in row["histories"]]
            if all(near):
                row["near_seconds"] = statistics.mean(entry["seconds"] for entry in near if entry)
                row["near_steps"] = statistics.mean(entry["step"] for entry in near if entry)
    for row in rows:
        for name, source in (COSTS | (ENCODER_COSTS if "passes_per_second" in row else {})).items():
            if source in row and source in base:
                row[name] = row[source] / base[source]


def first_near(history: list[dict[str, Any]], best: float) -> dict[str, Any] | None:
    """The first evaluation of a model of the size aimed at that came near the score `best`."""
    return next((entry for entry in history if entry["pruned"] and entry["score"] >= NEAR * best), None)


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "method": ("method", str),
    "removed": ("removed", lambda v: f"{100 * v:.1f} %"),
    "perplexity_cut": ("perplexity, cut", lambda v: f"{v:.1f}"),
    "held_out_loss_cut": ("held-out loss, cut", lambda v: f"{v:.3f}"),
    "perplexity": ("perplexity", lambda v: f"{v:.1f}"),
    "held_out_loss": ("held-out loss", lambda v: f"{v:.3f}"),
    "mmlu": ("MMLU", lambda v: f"{100 * v:.1f} %"),
    "dev_score": ("score", lambda v: f"{v:.1f}"),
    "near_steps": ("steps to 97 %", lambda v: f"{v:.0f}"),
    "near_time": ("time to 97 %", lambda v: f"{100 * v:.0f} %"),
    "train_time": ("train time", lambda v: f"{100 * v:.1f} %"),
    "train_memory": ("train memory", lambda v: f"{100 * v:.1f} %"),
    "inference_speed": ("inference speed", lambda v: f"{v:.2f}x"),
    "inference_memory": ("inference memory", lambda v: f"{100 * v:.1f} %"),
}


def varied(row: dict[str, Any]) -> list[str]:
    """Which of a row's keys are options that the comparison varies."""
    return [name for name in row if name in OPTIONS and name not in COLUMNS]


def cell(row: dict[str, Any], name: str) -> str:
    """One cell as people read it."""
    if name not in row or name not in COLUMNS:
        return str(row.get(name, ""))
    shown = COLUMNS[name][1]
    spread = f"{name}_std"
    return shown(row[name]) + (f" ± {shown(row[spread])}" if spread in row else "")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table; columns that nobody filled are left out."""
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    names[2:2] = dict.fromkeys(name for row in rows for name in varied(row))
    heads = (COLUMNS[name][0] if name in COLUMNS else name for name in names)
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(names) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cell(row, name) for name in names) + " |" for row in rows)]) + "\n"


def publish(rows: list[dict[str, Any]], folder: Path) -> None:
    """Write table.csv, table.json (all figures) and table.md, table.png where speeds were measured; print the table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "table.csv").open("w", newline="", encoding="utf8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / "table.json", rows)
    (folder / "table.md").write_text(markdown(rows), encoding="utf8")
    print(markdown(rows), flush=True)
    if all("inference_speed" in row and "perplexity" in row for row in rows):
        try:
            from apt_ds.plots import quality_against_speed
        except ModuleNotFoundError as error:
            print(f"table.png is left out, it needs {error.name}: pip install 'apt_ds[eval]'", flush=True)
            return
        quality_against_speed(rows, folder / "table.png")
