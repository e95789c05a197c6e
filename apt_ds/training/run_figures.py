"""The figures of a run that are known once its last step is done, for `summary.json`."""

from __future__ import annotations

from typing import cast

from apt_ds.models import adapter, quantization
from apt_ds.pruning import size_report
from apt_ds.runtime import profiler
from apt_ds.training import environment
from apt_ds.training.pruning_figures import PruningFigures
from apt_ds.training.run_parts import RunParts
from apt_ds.training.stream_batches import StreamBatches
from apt_ds.training.summary_schema import VERSION, ProfileFigures, Summary
from apt_ds.training.training_figures import TrainingFigures


def run_figures(parts: RunParts, excluded: list[str]) -> Summary:
    """The run's figures, all but the last evaluation. The engine must exist. Collective.

    Args:
        parts: what the run consists of.
        excluded: consumers that the kept sizes exclude.
    """
    figures, meter, batches = parts.evaluations.figures, parts.meter, parts.steps.batches
    model = parts.engine.module
    pruning = size_report.summary(parts.pruner) | quantization.summary(model)
    pruning |= parts.repairer.summary() | parts.one_shot_cut.summary()
    more: dict[str, object] = {
        "excluded": excluded,
        "ranks": adapter.ranks(model),
        "rebuild_seconds": meter.rebuilds,
        "rebuild_peak_bytes": meter.rebuild_peaks,
    }
    sizes = figures["data"]
    if isinstance(batches, StreamBatches):
        # known once the stream was read
        sizes = {**sizes, "dropped": batches.dropped()}
    summary: Summary = {
        "version": VERSION,
        "before": {**figures["before"], **meter.dense()},
        "data": sizes,
        "pruning": cast(PruningFigures, pruning | more),
        "training": cast(TrainingFigures, {**meter.whole(), **parts.score_history.summary()}),
        "environment": environment.describe(),
        "warnings": [],
    }
    if "after_cut" in figures:
        summary["after_cut"] = figures["after_cut"]
    if parts.run_config.output.profile:
        summary["profile"] = cast(dict[str, ProfileFigures], profiler.NOW.summary())
    return summary
