"""Heat maps of a run: kept blocks by layer and time, and the ranks of the adapters."""

from __future__ import annotations

import re
from typing import Any

from apt_ds.analysis.run_report.content import Content
from apt_ds.analysis.run_report.spec import Figure, heat_layout, heat_map


def heat_maps(content: Content) -> list[Figure]:
    """Kept blocks of every kind by layer and time, and the final ranks."""
    history = content.size_history()
    kinds = ("heads", "neurons", "experts") if history else ()
    figures = [kept_by_layer(history, kind) for kind in kinds if history[0][1].get(kind)]
    return [*figures, *final_ranks(content)]


def kept_by_layer(history: list[tuple[str, Any]], kind: str) -> Figure:
    """Kept blocks of one kind, in percent of the base model's: layers downwards, time to the right."""
    base = history[0][1][kind]
    counts = [[sizes[kind][layer] for _, sizes in history] for layer in range(len(base))]
    shares = [[100 * n / base[layer] if base[layer] else 0 for n in row] for layer, row in enumerate(counts)]
    names = [name if not name.isdecimal() else f"step {name}" for name, _ in history]
    data = heat_map(names, [str(layer) for layer in range(len(base))], shares, counts, "kept, %")
    data["zmin"], data["zmax"] = 0, 100
    data["hovertemplate"] = f"%{{x}}, layer %{{y}}<br>%{{text}} {kind}, %{{z:.1f}} %<extra></extra>"
    if len(names) > 8:
        data.pop("texttemplate", None)
    return Figure(
        f"Kept {kind} by layer",
        [data],
        heat_layout("time", "layer", len(base)),
        f"Numbers are {kind} of a layer. The colour is their share of the base model's.",
    )


def final_ranks(content: Content) -> list[Figure]:
    """Final ranks: layers downwards, adapted projections to the right. [] without adapters."""
    if not content.ranks:
        return []
    rows, columns, table = by_layer_and_target(content.ranks)
    data = heat_map(columns, rows, table, table, "rank")
    data["hovertemplate"] = "layer %{y}, %{x}<br>rank %{text}<extra></extra>"
    name = "Final ranks of the adapters" if content.summary else "Ranks of the adapters at the last checkpoint"
    return [Figure(name, [data], heat_layout("projection", "layer", len(rows)))]


def by_layer_and_target(ranks: dict[str, int]) -> tuple[list[str], list[str], list[list[int | None]]]:
    """Ranks as a table.

    Args:
        ranks: of every adapter, by the path of its module.

    Returns:
        Names of the layers, names of the projections, and a rank or None for each pair.
    """
    parts = [re.match(r"(.*?)(\d+)\.(.+)$", path) for path in ranks]
    split = [(p[1].rstrip("."), p[2], p[3]) if p else ("", path, path) for p, path in zip(parts, ranks, strict=True)]
    stacks = {stack for stack, _, _ in split}
    short = len({(stack, layer, target.rpartition(".")[2]) for stack, layer, target in split}) == len(split)
    cells: dict[tuple[str, str], int] = {}
    for (stack, layer, target), rank in zip(split, ranks.values(), strict=True):
        row = f"{stack.partition('.')[0]} {layer}" if len(stacks) > 1 else layer
        cells[row, target.rpartition(".")[2] if short else target] = rank
    rows, columns = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))
    return rows, columns, [[cells.get((row, name)) for name in columns] for row in rows]
