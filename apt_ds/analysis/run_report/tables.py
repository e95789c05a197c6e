"""The tables of a run report.

A cell has its text, the value that it sorts by, and the key of that value in `summary.json`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from apt_ds.analysis.run_report.content import Content, Json
from apt_ds.config.run_config import OPTIONS
from apt_ds.training import end_table
from apt_ds.training.summary_schema import Summary

MB = 1e-6
TIMES = {
    "steps_seconds": "steps",
    "scoring_seconds": "scoring",
    "rebuilds_seconds": "rebuilds",
    "evaluation_seconds": "evaluation",
}
PHASES = {
    "loading": "loading the model",
    "evaluation": "evaluation",
    "dense_steps": "steps before the first cut",
    "scoring": "scoring for a cut at once",
    "rebuilds": "rebuilds",
    "final_steps": "steps at the final size",
    "writing": "writing the model",
}


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what people read.
        value: what the column sorts by. None: the text.
        key: where `summary.json` has the value, with dots. '': nowhere.
        repeats: whether the cell above has the same text.
    """

    text: str
    value: float | None = None
    key: str = ""
    repeats: bool = False


@dataclass(frozen=True)
class Table:
    """A table. Columns after the first `words` ones hold numbers."""

    name: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    words: int = 1


@dataclass(frozen=True)
class Tile:
    """One headline figure: its text, what it is, and how it came about."""

    text: str
    label: str
    detail: str


def before_after(content: Content) -> Table:
    """The table of the end of the run. Of an unfinished run: its first and its last logged step."""
    if content.summary is None:
        return so_far(content)
    summary = cast(Summary, content.summary)
    names = end_table.columns(summary)
    rows, group = [], ""
    for row in end_table.rows(summary):
        figure = row.figure
        cells = [Cell(figure.group, repeats=figure.group == group), Cell(figure.label)]
        for name, text, value in zip(names, row.texts(), row.values, strict=True):
            raw = end_table.flat(cast(Json, summary[name])).get(figure.key)
            # the name of a text may hold dots, which no key has
            key = f"{name}.{figure.key}" if text and "." not in figure.key else ""
            cells.append(Cell(text or "-", raw if value is not None else None, key))
        rows.append([*cells, ratio_cell(row.ratio)])
        group = figure.group
    return Table("before and after", ["question", "figure", *(n.replace("_", " ") for n in names), "ratio"], rows, 2)


def so_far(content: Content) -> Table:
    """First and last logged step of an unfinished run."""
    figures = (
        ("loss", lambda line: line["loss"], "{:.3f}"),
        ("prunable parameters", lambda line: line["kept_parameters"], "{:,.0f}"),
        ("mean rank of the adapters", lambda line: line["ranks"]["mean"], "{:.1f}"),
        ("time of a step, seconds", lambda line: line["seconds"]["step"], "{:.3f}"),
        ("training, tokens per second", lambda line: line["tokens_per_second"], "{:,.1f}"),
    )
    ends = [content.metrics[0], content.metrics[-1]] if content.metrics else []
    rows = []
    for label, get, form in figures if ends else ():
        first, last = (get(line) for line in ends)
        cells = [Cell(form.format(v), v) if v is not None else Cell("-") for v in (first, last)]
        rows.append([Cell(label), *cells, ratio_cell(last / first if first and last is not None else None)])
    return Table("so far", ["figure", *(f"step {line['step']}" for line in ends), "ratio"], rows)


def ratio_cell(ratio: float | None) -> Cell:
    """A cell with a ratio of two figures."""
    return Cell(f"{ratio:.3f}", ratio) if ratio is not None else Cell("-")


def tiles(content: Content) -> list[Tile]:
    """Headline figures of a finished run. A figure that was not measured has no tile."""
    if content.summary is None:
        return []
    rows = {row.figure.key: row for row in end_table.rows(cast(Summary, content.summary))}
    shown = (
        ("parameters", "of the parameters"),
        ("checkpoint_bytes", "of the checkpoint's size"),
        ("decode_tokens_per_second", "the speed of decoding"),
        ("prefill_tokens_per_second", "the speed of prefill"),
        ("held_out_loss", "held-out loss"),
        ("score", "score of the task"),
        ("step_seconds", "the time of a step"),
        ("peak_added_bytes", "of the training memory"),
    )
    all_tiles = []
    for key, label in shown:
        row = rows.get(key)
        if row is None or row.ratio is None or row.values[0] is None or row.values[-1] is None:
            continue
        first, last = row.texts()[0], row.texts()[-1]
        if key in ("held_out_loss", "score"):
            text = f"{row.values[-1] - row.values[0]:+.3f}"
        else:
            text = f"{row.ratio:.2f}x" if "second" in key else f"{100 * row.ratio:.1f} %"
        all_tiles.append(Tile(text, label, f"{first} → {last}{unit_of(row.figure.label)}"))
    return all_tiles


def unit_of(label: str) -> str:
    """The unit that a label ends with, after a space. '' without one."""
    unit = label.rpartition(", ")[2] if ", " in label else ""
    return f" {unit}" if unit in ("MB", "seconds", "tokens per second") else ""


def run_times(content: Content) -> Table:
    """Seconds of the whole run by part. Of an unfinished run: those of its logged steps."""
    if content.summary is not None:
        training = content.summary["training"]
        parts = [(label, training[key], f"training.{key}") for key, label in TIMES.items()]
    else:
        lines = content.metrics
        names = {"step": "steps", "rebuild": "rebuilds", "salience": "scoring", "search": "search"}
        parts = [(label, sum(line["seconds"][key] for line in lines), "") for key, label in names.items()]
    total = sum(seconds for _, seconds, _ in parts) or 1.0
    rows = [
        [Cell(label), Cell(f"{seconds:,.2f}", seconds, key), Cell(f"{100 * seconds / total:.1f}", seconds / total)]
        for label, seconds, key in parts
    ]
    return Table("time of the run", ["part", "seconds", "share, %"], rows)


def step_times(content: Content) -> Table | None:
    """Milliseconds of a step by part. None without `--profile`."""
    profile: Json = (content.summary or {}).get("profile", {})
    if not profile:
        return None
    columns = ["part of a step"]
    for when in profile:
        columns += [f"{when}, ms", f"{when}, %"]
    rows = []
    for part in next(iter(profile.values()))["seconds"]:
        cells = [Cell(part)]
        for when, figures in profile.items():
            seconds, share = figures["seconds"][part], figures["share"][part]
            cells.append(Cell(f"{1e3 * seconds:,.2f}", seconds, f"profile.{when}.seconds.{part}"))
            cells.append(Cell(f"{100 * share:.1f}", share, f"profile.{when}.share.{part}"))
        rows.append(cells)
    return Table("time of a step by part", columns, rows)


def memory(content: Content) -> Table | None:
    """Peak memory by phase. None where no phase was measured."""
    peaks = (content.summary or {}).get("training", {}).get("memory_by_phase", {})
    rows = [
        [Cell(label), Cell(f"{peaks[phase] * MB:,.0f}", peaks[phase], f"training.memory_by_phase.{phase}")]
        for phase, label in PHASES.items()
        if phase in peaks
    ]
    return Table("peak memory by phase", ["phase", "peak, MB"], rows) if rows else None


def layers(content: Content) -> Table | None:
    """Sizes of every layer: of the base model, and at the last time that the files know. None without them."""
    history = content.size_history()
    if not history:
        return None
    before, after = history[0][1], history[-1][1]
    kinds = [kind for kind in ("heads", "neurons", "experts") if before.get(kind)]
    columns = ["layer"] + [f"{kind} {when}" for kind in kinds for when in ("before", "after")]
    rows = []
    for number in range(max((len(cast(Json, before)[kind]) for kind in kinds), default=0)):
        cells = [Cell(str(number), number)]
        for kind in kinds:
            for when, sizes in (("before", before), ("after", after)):
                values = cast(Json, sizes)[kind]
                key = f"pruning.layers.{when}.{kind}.{number}" if content.summary else ""
                inside = number < len(values)
                cells.append(Cell(f"{values[number]:,}", values[number], key) if inside else Cell("-"))
        rows.append(cells)
    return Table("sizes by layer", columns, rows, 0)


def changed_options(content: Content) -> Table:
    """Options of the run that differ from their defaults."""
    defaults = {name: spec.default for name, spec in OPTIONS.items()}
    changed = {name: value for name, value in content.config.items() if defaults.get(name) != value}
    return option_table("options that differ from their defaults", changed.items())


def all_options(content: Content) -> Table:
    """Every option of the run."""
    return option_table("all options", content.config.items())


def option_table(name: str, options: Iterable[tuple[str, Any]]) -> Table:
    """A table of options and their values."""
    rows = [[Cell(f"--{flag}"), Cell(option_text(value))] for flag, value in options]
    return Table(name, ["option", "value"], rows, 2)


def option_text(value: object) -> str:
    """The value of an option, as a command line has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value not in ("", None) else "(empty)"


def environment(content: Content) -> Table | None:
    """Device, processes and versions. None where no file has them."""
    values: Json = (content.summary or {}).get("environment", {})
    if not values:
        return None
    facts = {"device of the first rank": values["device"], "processes": values["world_size"], **values["versions"]}
    return Table("environment", ["what", "value"], [[Cell(k), Cell(str(v))] for k, v in facts.items()], 2)
