"""All figures of a benchmark in one Markdown table, as `launchers/BENCHMARKS.md` holds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apt_ds.analysis.bench.variants import LORA, VARIANTS

Figures = dict[str, Any]
Cell = Callable[[Figures, str], str]


def figure(key: str, form: str, scale: float = 1.0) -> Cell:
    """A cell with a figure of `table.summarize`. Empty where the variant has none."""

    def cell(figures: Figures, name: str) -> str:
        value = figures[key].get(name)
        return "" if value is None else form.format(value * scale)

    return cell


def to_lora(key: str) -> Cell:
    """A cell with a figure relative to that of LoRA. Empty where LoRA was not measured."""

    def cell(figures: Figures, name: str) -> str:
        values = figures[key]
        return f"{values[name] / values[LORA]:.3f}" if LORA in values and name in values else ""

    return cell


def target(what: str) -> Cell:
    """A cell with a variant's target, relative to LoRA."""

    def cell(figures: Figures, name: str) -> str:
        limit = getattr(VARIANTS[name], what)
        return "" if limit is None else f"{limit:g}"

    return cell


def generation(key: str) -> Cell:
    """A cell with a speed of `generation.inference`, and its ratio to dense."""

    def cell(figures: Figures, name: str) -> str:
        speeds = figures.get("inference") or {}
        if name not in speeds:
            return ""
        if key not in speeds[name]:
            return "not measured"
        value, dense = speeds[name][key], speeds.get("dense", {}).get(key)
        return f"{value:,.1f}" if name == "dense" or not dense else f"{value:,.1f} ({value / dense:.2f})"

    return cell


def columns(figures: Figures) -> dict[str, Cell]:
    """The cells of the table by the head of their column."""
    static = "captured" if figures.get("static_is_captured") else "static cache"
    all_columns = {
        "attention": lambda figures, name: figures["attention"].get(name, ""),
        "s/step": figure("step_seconds", "{:.3f}"),
        "to LoRA": to_lora("step_seconds"),
        "target": target("time"),
        "tokens/s": figure("tokens_per_second", "{:,.0f}"),
        "allocated, MB": figure("peak_memory_bytes", "{:,.0f}", 1e-6),
        "reserved, MB": figure("reserved_bytes", "{:,.0f}", 1e-6),
        "allocated, to LoRA": to_lora("peak_memory_bytes"),
        "target, memory": target("memory"),
        "utilisation": figure("utilisation", "{:.0f} %", 100),
        "rebuild, s": figure("rebuild_seconds", "{:.2f}"),
    }
    for batch in (1, 32) if figures.get("inference") else ():
        all_columns[f"decode at {batch}, tokens/s"] = generation(f"decode {batch}")
        all_columns[f"{static} at {batch}"] = generation(f"static {batch}")
    return all_columns


def render(figures: Figures) -> str:
    """One row a variant. Columns without any figure are left out."""
    names = [*figures["step_seconds"], *(n for n in figures.get("inference") or {} if n not in figures["step_seconds"])]
    cells = {head: [cell(figures, name) for name in names] for head, cell in columns(figures).items()}
    shown = {head: column for head, column in cells.items() if any(column)}
    rows = [["", *shown], ["---"] * (len(shown) + 1)]
    rows += [[VARIANTS[name].what, *(column[i] for column in shown.values())] for i, name in enumerate(names)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
