"""What the first rank does once the model is written: figures, model card, trackers, and leftovers."""

from __future__ import annotations

import sys

from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import collectives
from apt_ds.runtime.exit_status import one_line
from apt_ds.training.model_card import write_card
from apt_ds.training.report import render, report
from apt_ds.training.summary_schema import Summary
from apt_ds.training.trainer import Trainer


def conclude(run: RunConfig, trainer: Trainer, summary: Summary) -> Summary:
    """Complete and report the summary of a run whose model is written. The first rank works alone.

    Args:
        run: the options.
        trainer: has trained and written the model.
        summary: figures of the run.
    """
    logger = trainer.metrics_logger
    try:
        summary = report(run, trainer.base, trainer.data, summary, logger.folder)
    except BaseException:
        logger.finish_trackers({}, "", "failed")
        raise
    if collectives.is_main():
        _write_card(run, trainer, summary)
        logger.finish_trackers(summary, render(summary), "finished")
        trainer.tidy()
    return summary


def _write_card(run: RunConfig, trainer: Trainer, summary: Summary) -> None:
    """Write the model card. A failure is a warning: the model is written."""
    folder = trainer.metrics_logger.folder / "model"
    try:
        write_card(run, trainer.base, summary, folder, collectives.world_size())
    except Exception as error:
        print(f"the model card was not written: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
