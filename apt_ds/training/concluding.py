"""What the first rank does once the model is written: figures, trackers, and leftovers."""

from __future__ import annotations

from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import collectives
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
        logger.finish_trackers(summary, render(summary), "finished")
        trainer.tidy()
    return summary
