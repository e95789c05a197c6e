"""The rows of a comparison: figures of each run, averages over seeds, quality and cost relative to a reference run.

`python -m apt_ds.analysis.compare_table --folder DIR` prints the table of a finished comparison again and writes it
into a document.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_ds.analysis.variants import Setting, Variant
from apt_ds.training.score_history import NEAR

Row = dict[str, Any]

MMLU_FILE = "mmlu.json"  # in the folder of a run: its answers to MMLU
LOCAL_FILE = "local.json"  # in the folder of a run: its answers to the suite `local`
BY_TEXT = "corpus_perplexities"  # key of an evaluation with several texts

# column: where summary.json has it
QUALITY = {
    "perplexity_cut": ("after_cut", "corpus_perplexity"),
    "held_out_loss_cut": ("after_cut", "held_out_loss"),
    "perplexity": ("after", "corpus_perplexity"),
    "held_out_loss": ("after", "held_out_loss"),
    "dev_score": ("after", "score"),
    "exact": ("after", "exact"),
    "best_exact": ("after", "best_exact"),
    "best_f1": ("after", "best_f1"),
}
# ratio column: the figure that is divided by the reference's
RATIOS = {
    "relative_perplexity": "perplexity",
    "relative_score": "dev_score",
    "near_time": "near_seconds",
    "train_time": "whole_seconds",
    "train_memory": "whole_bytes",
    "final_step_time": "step_seconds",
    "final_memory": "final_bytes",
    "inference_speed": "decode_tokens_per_second",
    "inference_memory": "inference_bytes",
    "batch_speed": "inference_batch_tokens_per_second",
    "batch_memory": "inference_batch_bytes",
}
ENCODER_RATIOS = {"inference_speed": "sequences_per_second"}
LANGUAGE_MODEL_RATIOS = {"relative_score": "mmlu"}


@dataclass(frozen=True)
class Trial:
    """One run: a method at a sparsity with a seed, and its folder.

    Attributes:
        setting: the values of the options that the comparison varies.
        options: the method's own options, which belong to its name.
    """

    method: str
    sparsity: float
    seed: int
    folder: Path
    setting: Setting = ()
    options: Setting = ()

    @property
    def row(self) -> tuple[object, ...]:
        """What runs of one row of the table have in common: all but the seed."""
        return self.method, self.options, self.sparsity, self.setting


def tabulate(trials: list[Trial], speeds: dict[str, Any], about: Row | None = None) -> list[Row]:
    """One row per method, sparsity and setting. All rows have the same keys; an absent figure is None.

    Args:
        trials: finished runs.
        speeds: inference figures, by the folder name of a row's first run.
        about: what every row states: the name of the score, the batch size of inference.
    """
    rows: list[Row] = []
    histories: list[list[list[Row]]] = []
    for key in dict.fromkeys(trial.row for trial in trials):
        members = [trial for trial in trials if trial.row == key]
        summaries = [json.loads((t.folder / "summary.json").read_text(encoding="utf8")) for t in members]
        histories.append([summary["training"]["history"] for summary in summaries])
        rows.append(make_row(members, summaries) | speeds.get(members[0].folder.name, {}) | (about or {}))
    normalize(rows, histories)
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def make_row(members: list[Trial], summaries: list[Row]) -> Row:
    """Quality as mean over seeds with its deviation; times as median and memory as maximum over seeds."""
    first = members[0]
    row: Row = {"method": Variant(first.method, first.options).label, "removed": 1 - summaries[0]["pruning"]["kept"]}
    row |= dict(first.setting) | {"seeds": len(members)}
    for name, (when, key) in QUALITY.items():
        put(row, name, [summary.get(when, {}).get(key) for summary in summaries])
    add_texts(row, summaries)
    add_tasks(row, members)
    training, after = [s["training"] for s in summaries], [s["after"] for s in summaries]
    for part in ("", "steps_", "scoring_", "rebuilds_", "evaluation_"):
        name = f"{part}seconds"
        row[f"whole_{name}"] = combine(statistics.median, [t[name] for t in training])
    row["whole_bytes"] = combine(max, [t["peak_memory_bytes"] for t in training])
    row["step_seconds"] = combine(statistics.median, [a["step_seconds"] for a in after])
    row["final_bytes"] = combine(max, [a["peak_memory_bytes"] for a in after])
    return row


def add_texts(row: Row, summaries: list[Row]) -> None:
    """Add the perplexities of the texts after the first, and the first one's name as `text`. One text has no name."""
    texts = list(summaries[0]["after"].get(BY_TEXT, {}))
    if not texts:
        return
    row["text"] = texts[0]
    for column, when in (("perplexity_cut", "after_cut"), ("perplexity", "after")):
        for text in texts[1:]:
            put(row, f"{column}:{text}", [summary.get(when, {}).get(BY_TEXT, {}).get(text) for summary in summaries])


def add_tasks(row: Row, members: list[Trial]) -> None:
    """Add the accuracy on MMLU and on each task of the suite `local`, where all runs have it."""
    marks = [t.folder / MMLU_FILE for t in members]
    if all(mark.exists() for mark in marks):
        put(row, "mmlu", [json.loads(mark.read_text(encoding="utf8"))["accuracy"] for mark in marks])
    files = [t.folder / LOCAL_FILE for t in members]
    if all(file.exists() for file in files):
        runs = [json.loads(file.read_text(encoding="utf8"))["tasks"] for file in files]
        for task in runs[0]:
            put(row, f"local:{task}", [tasks.get(task, {}).get("accuracy") for tasks in runs])
            if "log_likelihood" in runs[0][task]:
                put(row, f"likelihood:{task}", [tasks.get(task, {}).get("log_likelihood") for tasks in runs])
            row[f"chance:{task}"] = runs[0][task]["chance"]


def combine(how: Callable[[list[float]], float], values: list[float | None]) -> float | None:
    """`how` of the values, None where one is absent."""
    present = [value for value in values if value is not None]
    return how(present) if len(present) == len(values) else None


def put(row: Row, name: str, values: list[float | None]) -> None:
    """Set the mean and, with several seeds, the standard deviation. Both are None where a value is absent."""
    row[name] = combine(statistics.mean, values)
    if len(values) > 1:
        finite = row[name] is not None and math.isfinite(row[name])
        row[f"{name}_std"] = combine(statistics.stdev, values) if finite else None


def normalize(rows: list[Row], histories: list[list[list[Row]]]) -> None:
    """Add the ratios to the reference, if that was run, and its name as `reference`.

    The reference is the first row of full fine-tuning where a task has a score, else of dense LoRA.
    `near_seconds` is the training time until a model of the final size first scored 97 % of the best score of the
    reference, which is how the paper measures training speed.

    Args:
        rows: changed in place.
        histories: of each row the evaluations of each of its runs.
    """
    scored = any(row.get("dev_score") is not None for row in rows)
    method = "full" if scored else "lora"
    number = next((i for i, row in enumerate(rows) if row["method"] == method), None)
    if number is None:
        return
    base = rows[number]
    if scored:
        add_near(rows, histories, number)
    ratios = RATIOS | ({} if scored else LANGUAGE_MODEL_RATIOS)
    ratios |= ENCODER_RATIOS if base.get("sequences_per_second") is not None else {}
    for row in rows:
        row["reference"] = method
        row |= {name: ratio(row.get(source), base.get(source)) for name, source in ratios.items()}


def add_near(rows: list[Row], histories: list[list[list[Row]]], number: int) -> None:
    """Add seconds and steps to 97 % of the reference's best score; None where a run never came there."""
    bests = [max(entry["score"] for entry in history) for history in histories[number] if history]
    if not bests:
        return
    best = statistics.mean(bests)
    for row, runs in zip(rows, histories, strict=True):
        near = [first_near(history, best) for history in runs]
        for key, column in (("seconds", "near_seconds"), ("step", "near_steps")):
            row[column] = combine(statistics.mean, [entry[key] if entry else None for entry in near])


def ratio(value: float | None, base: float | None) -> float | None:
    """`value` divided by a positive `base`; None where either is absent, or nothing can be relative to `base`."""
    return None if value is None or base is None or base <= 0 else value / base


def first_near(history: list[Row], best: float) -> Row | None:
    """The first evaluation at the final size whose score was at least `NEAR` times `best`."""
    return next((entry for entry in history if entry["pruned"] and entry["score"] >= NEAR * best), None)


if __name__ == "__main__":
    from apt_ds.analysis.result_table import main
    from apt_ds.runtime import exit_status

    exit_status.main(main)
