"""A whole run: join the world, find every mistake before anything is written, train, report."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from apt_ds import checkpoint, dist, models, preflight, quantized, zero
from apt_ds.config import RunConfig
from apt_ds.data.glue import labels_of
from apt_ds.data.tokens import check_positions
from apt_ds.ds_config import load_config
from apt_ds.faults import explain
from apt_ds.feed import read_data
from apt_ds.journal import Journal, prepare_output
from apt_ds.pruner import Pruner
from apt_ds.report import report
from apt_ds.rules import mask_notice
from apt_ds.stopping import Stopping
from apt_ds.trainer import Trainer
from apt_ds.watchdog import Watchdog


def train(run: RunConfig) -> dict[str, Any]:
    """Do the whole run; returns what `summary.json` holds. Every rank calls it.

    Raises:
        UserError: a mistake in the input, found before anything is trained or written.
        RankError: ranks disagree on a decision.
        LostRank: another rank is gone.
        Stopped: a signal has asked for it, and the run is saved.
    """
    with Stopping() as stopping:
        zero.init_distributed(run.timeout)
        with Watchdog(run.timeout, stopping.leave) as watchdog:
            stopping.tell = watchdog.tell
            try:
                trainer = prepare(run, stopping)
                try:
                    figures = trainer.run()
                finally:
                    trainer.journal.close()
                dist.barrier()
            except (RuntimeError, MemoryError) as error:
                told = explain(error, watchdog)
                if told is error:
                    raise
                raise told from error
        if stopping.asked:
            # it came while the model was written: the summary is, too, and what takes long is left out
            run = replace(run, report=False)
        return report(run, trainer.base, trainer.data.held_out_examples, figures, trainer.journal.folder)


def prepare(run: RunConfig, stopping: Stopping | None = None) -> Trainer:
    """Everything up to the first step; what the user got wrong comes out here, before anything is written."""
    zero.init_distributed(run.timeout)
    models.quiet_transformers()
    base = models.find_base(run.model_name_or_path, run.task, labels_of(run.task))
    config = load_config(run, dist.world_size(), base.config.hidden_size)
    zero.check_config(config, run.deepspeed)
    quantized.check(run, base.anatomy, zero.device())
    check_positions(base.config, run.max_seq_length)
    data = read_data(run, base)
    commit = str(vars(base.config).get("_commit_hash"))
    preflight.compare(preflight.facts_of(run, config, base.source, commit, data.prints()))
    preflight.check_room(Path(run.output_dir), models.bytes_written(base, run))
    pruner = Pruner(run, base.anatomy, data.total_steps, zero.device())
    if dist.is_main() and (notice := mask_notice(run, data.total_steps)):
        print(notice, file=sys.stderr, flush=True)
    saved = checkpoint.find(run.resume_from_checkpoint, Path(run.output_dir))
    if saved is not None:
        saved.check(run, data.counts(), data.prints())
    output = prepare_output(run, saved.metrics if saved is not None else None)
    return Trainer(run, base, config, data, pruner, Journal(output, data.total_steps), saved, stopping)
