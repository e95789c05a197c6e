"""The tables of a model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apt_ds.training import end_table

COLUMNS = {"before": "base model", "after_cut": "after the cut", "after": "this model"}
# key of an evaluation: label, format, what to divide by. Other keys are the task's metrics
LABELS: dict[str, tuple[str, str, float]] = {
    "parameters": ("parameters", "{:,.0f}", 1),
    "parameters_without_embeddings": ("parameters without embeddings", "{:,.0f}", 1),
    "checkpoint_bytes": ("size of the weights, MB", "{:,.1f}", 1e6),
    "held_out_loss": ("held-out loss, nats", "{:.4f}", 1),
    "held_out_perplexity": ("held-out perplexity", "{:.3f}", 1),
    "corpus_perplexity": ("perplexity of a text", "{:.3f}", 1),
    "generated_tokens_per_second": ("generation at batch 1, tokens per second", "{:.1f}", 1),
    "prefill_tokens_per_second": ("prompt processing at batch 1, tokens per second", "{:.1f}", 1),
    "decode_tokens_per_second": ("decoding at batch 1, tokens per second", "{:.1f}", 1),
    "step_seconds": ("training step, seconds", "{:.4f}", 1),
    "peak_memory_bytes": ("peak memory of training, MB", "{:,.0f}", 1e6),
    "peak_added_bytes": ("peak memory of training without the process itself, MB", "{:,.0f}", 1e6),
    "peak_reserved_bytes": ("peak memory that training reserved, MB", "{:,.0f}", 1e6),
}


def evaluations(summary: Mapping[str, Any]) -> list[list[str]]:
    """Rows of quality, size and speed, the header first. A row without a number is left out."""
    present = {key: label for key, label in COLUMNS.items() if key in summary}
    flat = {column: end_table.flat(summary[column]) for column in present}
    texts = [key for key in flat["after"] if key.startswith(f"{end_table.TEXTS}.")]
    labels = LABELS | {key: (f"perplexity of {key.partition('.')[2]}", "{:.3f}", 1) for key in texts}
    metrics = [key for key in flat["after"] if key not in labels]
    rows = [["", *present.values(), "ratio"]]
    for key in (*metrics, *labels):
        label, form, unit = labels.get(key, (key.replace("_", " "), "{:.4f}", 1))
        cells = [flat[column].get(key) for column in present]
        if not any(isinstance(cell, int | float) for cell in cells):
            continue
        first, last = cells[0], cells[-1]
        ratio = f"{last / first:.3f}" if first and last is not None else ""
        rows.append([label, *(form.format(cell / unit) if cell is not None else "" for cell in cells), ratio])
    return rows


def layers(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[list[str]]:
    """Rows of sizes by layer, kept of the base model's, the header first.

    Args:
        before: sizes of the base model as `layer_sizes.describe` has them.
        after: the same of the written model.
    """
    kinds = [kind for kind in ("heads", "experts", "neurons") if kind in before and kind in after]
    count = max((len(after[kind]) for kind in kinds if isinstance(after[kind], list)), default=0)
    columns = [(_by_layer(after[kind], count), _by_layer(before[kind], count)) for kind in kinds]
    rows = [["layer", *kinds]]
    for layer in range(max(count, 1)):
        cells = [f"{kept[layer]} of {had[layer]}" if layer < len(kept) else "" for kept, had in columns]
        rows.append([str(layer) if count else "all", *cells])
    return rows


def _by_layer(sizes: int | list[int], count: int) -> list[int]:
    return list(sizes) if isinstance(sizes, list) else [sizes] * max(count, 1)
