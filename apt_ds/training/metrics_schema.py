"""The product's API: the content of each line of `metrics.jsonl`.

`summary_schema.py` has `VERSION` and the rules for keys.
"""

from __future__ import annotations

from typing import TypedDict

from apt_ds.training.pruning_figures import LayerSizes


class Ranks(TypedDict):
    """Ranks of the adapters. 0 without adapters."""

    min: int
    mean: float
    max: int


class StepSeconds(TypedDict):
    """Seconds of one step, and of the rebuild, scoring and search since the line before.

    Attributes:
        salience, search: time at step boundaries.
    """

    step: float
    rebuild: float
    salience: float
    search: float


class _MetricsLine(TypedDict):
    step: int
    loss: float | None
    learning_rate: float
    kept: float
    kept_parameters: int
    target: float
    ranks: Ranks
    tokens_per_second: float
    non_padding: float
    peak_memory_bytes: int
    seconds: StepSeconds


class MetricsLine(_MetricsLine, total=False):
    """One line of `metrics.jsonl`.

    Attributes:
        step: number of updates so far.
        loss: mean over the global batch. None if it is not finite.
        kept, target: fractions of the prunable parameters, actual and scheduled.
        tokens_per_second: over all ranks, of this step.
        non_padding: fraction of the global batch's tokens that is not padding.
        peak_memory_bytes: since the last step or rebuild.
        sizes_before: sizes of the base model. On the first line.
        sizes: sizes of every layer. On the first line, and on the first line after a rebuild.
        warnings: printed during training since the line before. Absent without one.
        teacher_distance: with --distill logits: KL(dense || student), mean over the trained tokens of the last step
            with a finite loss, in nats.
    """

    sizes_before: LayerSizes
    sizes: LayerSizes
    warnings: list[str]
    teacher_distance: float
