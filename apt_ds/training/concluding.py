"""What the first rank does once the model is written: figures, model card, trackers, leftovers, upload."""

from __future__ import annotations

import sys
from pathlib import Path

from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures.licence_terms import terms_of
from apt_ds.models.origin import origin_of
from apt_ds.runtime import collectives
from apt_ds.runtime.exit_status import one_line
from apt_ds.training.hub import Destination, check_destination, failed, upload_or_say_how
from apt_ds.training.model_card.card import write_card
from apt_ds.training.report import render, report
from apt_ds.training.summary_schema import Summary
from apt_ds.training.trainer import Trainer


def find_destination(run: RunConfig) -> Destination | None:
    """Where the run uploads its model. None: nowhere. Writes nothing.

    Raises:
        UserError: the upload lacks a token or has a wrong name.
    """
    if not run.output.push_to_hub:
        return None
    output, base = run.output, run.model.model_name_or_path
    terms = terms_of(origin_of(base, base).licence)
    return check_destination(
        output.hub_model_id,
        Path(output.output_dir).absolute().name,
        output.hub_private_repo,
        output.hub_token,
        terms.name_begins if terms is not None else "",
    )


def conclude(
    run: RunConfig, trainer: Trainer, summary: Summary, destination: Destination | None = None, stopped: bool = False
) -> Summary:
    """Complete and report the summary of a run whose model is written. The first rank works alone.

    Args:
        run: the options.
        trainer: has trained and written the model.
        summary: figures of the run.
        destination: where to upload the model. None: nowhere.
        stopped: whether a signal asked for the end. The model is then not uploaded.
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
        if destination is not None and stopped:
            failed(logger.folder, destination, "the run was asked to stop")
        elif destination is not None:
            upload_or_say_how(logger.folder, destination)
    return summary


def _write_card(run: RunConfig, trainer: Trainer, summary: Summary) -> None:
    """Write the model card. A failure is a warning: the model is written."""
    folder = trainer.metrics_logger.folder / "model"
    try:
        write_card(run, trainer.base, summary, folder, collectives.world_size())
    except Exception as error:
        print(f"the model card was not written: {type(error).__name__}: {one_line(error)}", file=sys.stderr, flush=True)
