"""The figures of a run that are known once its last step is done, for `summary.json`."""

from __future__ import annotations

from typing import cast

from torch import nn

from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter, quantization
from apt_ds.pruning import size_report
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import profiler
from apt_ds.training import environment
from apt_ds.training.evaluations import Evaluations
from apt_ds.training.meter import Meter
from apt_ds.training.micro_batches import MicroBatches
from apt_ds.training.one_shot_cut import OneShotCut
from apt_ds.training.pruning_figures import PruningFigures
from apt_ds.training.repairing import Repairer
from apt_ds.training.score_history import ScoreHistory
from apt_ds.training.stream_batches import StreamBatches
from apt_ds.training.summary_schema import VERSION, ProfileFigures, Summary
from apt_ds.training.training_figures import TrainingFigures


def run_figures(
    run: RunConfig,
    model: nn.Module,
    pruner: Pruner,
    repairer: Repairer,
    one_shot_cut: OneShotCut,
    evaluations: Evaluations,
    meter: Meter,
    score_history: ScoreHistory,
    batches: MicroBatches,
    excluded: list[str],
) -> Summary:
    """The run's figures, all but the last evaluation. Collective.

    Args:
        run: the options.
        model: what the run trained, with its engine.
        pruner: knows what was removed.
        repairer: knows what was repaired.
        one_shot_cut: knows what its searches found.
        evaluations: those so far.
        meter: time and memory.
        score_history: the scores that were reached, and when.
        batches: what the steps read.
        excluded: consumers that the kept sizes exclude.
    """
    figures = evaluations.figures
    pruning = size_report.summary(pruner) | quantization.summary(model) | repairer.summary() | one_shot_cut.summary()
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
        "training": cast(TrainingFigures, {**meter.whole(), **score_history.summary()}),
        "environment": environment.describe(),
        "warnings": [],
    }
    if "after_cut" in figures:
        summary["after_cut"] = figures["after_cut"]
    if run.output.profile:
        summary["profile"] = cast(dict[str, ProfileFigures], profiler.NOW.summary())
    return summary
