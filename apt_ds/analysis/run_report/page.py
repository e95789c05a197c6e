"""The page of a run report: sections in the order in which people ask, one HTML file without references."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import apt_ds
from apt_ds.analysis.run_report import costs, curves, heat_maps, tables
from apt_ds.analysis.run_report.content import Content
from apt_ds.analysis.run_report.spec import Figure
from apt_ds.analysis.run_report.tables import Table

HERE = "apt_ds.analysis.run_report"


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        id: its anchor.
        name: its heading.
        notes: sentences under the heading.
        code: a line of code.
        blocks: figures and tables, in order.
        folded: tables that open on a click.
        samples: questions with two answers.
        items: a list.
    """

    id: str
    name: str
    notes: list[str] = field(default_factory=list)
    code: str = ""
    blocks: list[Figure | Table] = field(default_factory=list)
    folded: list[Table] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)
    items: list[str] = field(default_factory=list)


def sections(content: Content) -> list[Section]:
    """All sections, the same for every run. What the files do not hold, a section says in a sentence."""
    summary = content.summary or {}
    return [
        _before_after(content),
        _training(content),
        _kept(content),
        _consumers(content),
        _time(content),
        _memory(content),
        Section(
            "samples",
            "Samples before and after",
            notes=[] if summary.get("samples") else [_no_samples(content)],
            samples=summary.get("samples", []),
        ),
        _configuration(content),
        Section(
            "warnings",
            "Warnings",
            notes=[] if content.warnings else ["The run printed no warning."],
            items=content.warnings,
        ),
    ]


def _before_after(content: Content) -> Section:
    notes = []
    base = content.summary["training"].get("base_memory_bytes", 0) if content.summary is not None else 0
    if base:
        notes.append(f"Memory leaves out the {base / 1e6:,.0f} MB that the process used before the model was loaded.")
    if content.summary is not None and "note" in content.summary:
        notes.append(content.summary["note"])
    if content.summary is None and not content.metrics:
        notes.append("The run has not logged a step.")
    table = tables.before_after(content)
    name = "Before and after" if content.summary is not None else "So far"
    return Section("before-after", name, notes, blocks=[table] if table.rows else [])


def _training(content: Content) -> Section:
    figures = curves.curves(content)
    return Section(
        "training", "Training", notes=[] if figures else ["The run has not logged a step."], blocks=[*figures]
    )


def _kept(content: Content) -> Section:
    table = tables.layers(content)
    return Section(
        "kept",
        "Kept blocks and ranks by layer",
        notes=[] if table or content.ranks else ["No file of the run has sizes by layer."],
        blocks=[*heat_maps.heat_maps(content)],
        folded=[table] if table else [],
    )


def _consumers(content: Content) -> Section:
    """Programs that cannot load the kept sizes although they load those of the base model."""
    excluded = (content.summary or {}).get("pruning", {}).get("excluded")
    note = "No consumer of the base model is excluded by the kept sizes."
    if excluded:
        note = "The kept sizes exclude these consumers of the base model:"
    elif content.summary is None:
        note = "The written sizes exist once a run has finished."
    elif excluded is None:
        note = "A run of an earlier version did not record the consumers that its sizes exclude."
    return Section("consumers", "Consumers of the written model", [note], items=excluded or [])


def _time(content: Content) -> Section:
    parts = tables.step_times(content)
    return Section(
        "time",
        "Time",
        notes=[] if parts else ["The run had no --profile, which measures the parts of a step."],
        blocks=[
            *costs.step_parts(content),
            *costs.step_times(content),
            *costs.run_times(content),
            tables.run_times(content),
            *([parts] if parts else []),
        ],
    )


def _memory(content: Content) -> Section:
    table = tables.memory(content)
    return Section(
        "memory",
        "Memory",
        notes=[] if table else ["Peaks by phase exist once a run has finished."],
        blocks=[*costs.phase_memory(content), *([table] if table else []), *costs.step_memory(content)],
    )


def _no_samples(content: Content) -> str:
    if content.summary is None:
        return "Samples exist once a run has finished."
    return "The run generated no samples: --report, --report_samples and the task decide that."


def _configuration(content: Content) -> Section:
    option_tables = [tables.changed_options(content), tables.environment(content)]
    return Section(
        "configuration",
        "Configuration",
        notes=[] if content.command else ["No file of the run has its command."],
        code=content.command,
        blocks=[table for table in option_tables if table],
        folded=[tables.all_options(content)],
    )


def facts(content: Content) -> list[str]:
    """What the run was, in a few words each."""
    config, summary = content.config, content.summary
    parts = [str(config.get(key, "")) for key in ("model_name_or_path", "data_path")]
    if config.get("task") and config["task"] != "instructions":
        parts.append(f"task {config['task']}")
    if summary is not None:
        pruning = summary["pruning"]
        parts.append(f"kept {100 * pruning['kept']:.1f} % of the prunable parameters")
        parts.append(f"{summary['data']['steps']} steps in {summary['training']['seconds']:,.0f} s")
    return [fact for fact in parts if fact]


def unfinished(content: Content) -> str:
    """How far an unfinished run has come. '' for a finished one."""
    if content.summary is not None:
        return ""
    total = f" of {content.total_steps}" if content.total_steps else ""
    text = f"The last logged step is {content.last_step}{total}. The run still trains, or it was interrupted."
    saved = content.manifest.get("step")
    return text + (f" Its newest checkpoint is of step {saved}." if saved is not None else "")


def render(content: Content, plotly: str) -> str:
    """The page as HTML.

    Args:
        content: What the files of the run hold.
        plotly: The source of plotly.js.
    """
    page_sections = sections(content)
    figures = [block for section in page_sections for block in section.blocks if isinstance(block, Figure)]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text_of("page.html")).render(
        title=content.folder.resolve().name,
        folder=str(content.folder.resolve()),
        facts=facts(content),
        unfinished=unfinished(content),
        tiles=tables.tiles(content),
        sections=page_sections,
        numbers={figure.name: number for number, figure in enumerate(figures)},
        specs=embedded([figure.spec() for figure in figures]),
        version=apt_ds.__version__,
        style=Markup(text_of("page.css")),  # a file of this package
        script=Markup(text_of("page.js")),  # a file of this package
        plotly=Markup(plotly),  # the library's own source
    )


def embedded(value: Any) -> Markup:
    """JSON that a script element can hold: no markup begins in it."""
    text = json.dumps(value, allow_nan=False)
    for sign, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(sign, code)
    return Markup(text)  # escaped above


def text_of(name: str) -> str:
    """The text of a file beside this module."""
    return resources.files(HERE).joinpath(name).read_text(encoding="utf8")
