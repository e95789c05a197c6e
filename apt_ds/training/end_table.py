"""The table that a run ends with: how much smaller, how much faster, how much worse, and what training cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from apt_ds.training.summary_schema import Summary

Column = Literal["before", "after_cut", "after"]
COLUMNS: tuple[Column, ...] = ("before", "after_cut", "after")
SMALLER, FASTER, WORSE, COST = "how much smaller", "how much faster, batch 1", "how much worse", "what training cost"
GROUPS = (SMALLER, FASTER, WORSE, COST)


@dataclass(frozen=True)
class Figure:
    """A figure of the table.

    Attributes:
        group: one of `GROUPS`.
        key: its key in an evaluation of the summary.
        label: its name.
        form: its format.
        scale: what it is multiplied by.
    """

    group: str
    key: str
    label: str
    form: str
    scale: float = 1


@dataclass(frozen=True)
class Row:
    """A figure at every evaluation of the run. An absent value is None.

    Attributes:
        figure: what the row shows.
        values: scaled values, in the order of the columns.
        ratio: the last value divided by the first. None without both.
    """

    figure: Figure
    values: tuple[float | None, ...]
    ratio: float | None

    def texts(self) -> list[str]:
        """The values as text. '' for an absent one."""
        return [self.figure.form.format(value) if value is not None else "" for value in self.values]


FIGURES = (
    Figure(SMALLER, "parameters", "parameters, all", "{:,.0f}"),
    Figure(SMALLER, "parameters_without_embeddings", "parameters, without embeddings", "{:,.0f}"),
    Figure(SMALLER, "checkpoint_bytes", "checkpoint size, MB", "{:,.1f}", 1e-6),
    Figure(FASTER, "decode_tokens_per_second", "decode, tokens per second", "{:,.1f}"),
    Figure(FASTER, "prefill_tokens_per_second", "prefill, tokens per second", "{:,.1f}"),
    Figure(WORSE, "held_out_loss", "held-out loss", "{:.3f}"),
    Figure(WORSE, "held_out_perplexity", "held-out perplexity", "{:,.2f}"),
    Figure(WORSE, "corpus_perplexity", "corpus perplexity", "{:,.2f}"),
    Figure(WORSE, "mmlu", "MMLU accuracy, %", "{:.2f}"),
    Figure(COST, "step_seconds", "time of a step, seconds", "{:.3f}"),
    Figure(COST, "peak_added_bytes", "peak memory, MB", "{:,.0f}", 1e-6),
    Figure(COST, "peak_reserved_bytes", "the same, reserved, MB", "{:,.0f}", 1e-6),
)
TEXTS = "corpus_perplexities"  # key of an evaluation with several texts
NO_ROW = {"generated_tokens_per_second", "peak_memory_bytes"}  # other rows have their parts


def columns(summary: Summary) -> list[Column]:
    """The evaluations that the run has, in order."""
    return [name for name in COLUMNS if name in summary]


def rows(summary: Summary) -> Iterator[Row]:
    """The rows that have a value, by group. Metrics of a task come first in their group."""
    evaluations = [flat(summary[name]) for name in columns(summary)]
    known = {figure.key for figure in FIGURES} | NO_ROW
    texts = [key for key in evaluations[-1] if key.startswith(f"{TEXTS}.")]
    named = [Figure(WORSE, key, f"perplexity, {key.removeprefix(f'{TEXTS}.')}", "{:,.2f}") for key in texts]
    metrics = [key for key in evaluations[-1] if key not in known and key not in texts]
    more = [*(Figure(WORSE, key, key.replace("_", " "), "{:.4f}") for key in metrics), *FIGURES, *named]
    for group in GROUPS:
        for figure in more:
            values = [evaluation.get(figure.key) for evaluation in evaluations]
            if figure.group == group and any(value is not None for value in values):
                yield make_row(figure, values)


def flat(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation where each of several texts has a key of its own, in place of `corpus_perplexity`."""
    by_text = evaluation.get(TEXTS)
    if by_text is None:
        return dict(evaluation)
    others = {key: value for key, value in evaluation.items() if key not in (TEXTS, "corpus_perplexity")}
    return others | {f"{TEXTS}.{name}": value for name, value in by_text.items()}


def make_row(figure: Figure, values: list[float | None]) -> Row:
    """The row of one figure. values: as the summary has them."""
    first, last = values[0], values[-1]
    scaled = tuple(value * figure.scale if value is not None else None for value in values)
    return Row(figure, scaled, last / first if first and last is not None else None)


def render(summary: Summary) -> str:
    """The table as text."""
    head = "".join(f"{name.replace('_', ' '):>16}" for name in columns(summary))
    lines, group = [f"{'':34}{head}{'after/before':>14}"], ""
    for row in rows(summary):
        if row.figure.group != group:
            group = row.figure.group
            lines.append(f"{group}:")
        cells = "".join(f"{text:>16}" for text in row.texts())
        ratio = f"{row.ratio:.3f}" if row.ratio is not None else ""
        lines.append(f"{'  ' + row.figure.label:34}{cells}{ratio:>14}")
    return "\n".join(lines)
