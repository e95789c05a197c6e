"""A whole run: join the world, find every mistake before anything is written, train, report."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from apt_ds import checkpoint, dist, models, preflight, quantized, zero
from apt_ds.base_config import decisive
from apt_ds.config import RunConfig
from apt_ds.data.glue import labels_of
from apt_ds.data.tokens import check_lengths, check_positions
from apt_ds.ds_config import load_config
from apt_ds.export.configs import writable_sizes
from apt_ds.faults import explain
from apt_ds.feed import read_data
from apt_ds.journal import Journal
from apt_ds.model_folder import check_weights
from apt_ds.output_folder import check_output, discard_output, prepare_output
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
            except BaseException as error:
                stopping.discard()
                if not isinstance(error, RuntimeError | MemoryError):
                    raise
                told = explain(error, watchdog)
                if told is error:
                    raise
                raise told from error
        if stopping.asked:
            # it came while the model was written: the summary is, too, and what takes long is left out
            run = replace(run, report=False)
        figures = report(run, trainer.base, trainer.data, figures, trainer.journal.folder)
        if dist.is_main():
            trainer.tidy()
        return figures


def prepare(run: RunConfig, stopping: Stopping | None = None) -> Trainer:
    """Everything up to the first step; what the user got wrong comes out here, before anything is written."""
    zero.init_distributed(run.timeout)
    models.quiet_transformers()
    zero.check_sections(run.deepspeed)
    base = models.find_base(run.model_name_or_path, run.task, labels_of(run.task), run.trust_remote_code)
    check_weights(base.source, f"--model_name_or_path {run.model_name_or_path!r}")
    config = load_config(run, dist.world_size(), base.config.hidden_size)
    zero.check_config(config, run.deepspeed)
    quantized.check(run, base.anatomy, zero.device())
    check_positions(base.config, run.max_seq_length)
    saved = checkpoint.find(run.resume_from_checkpoint, Path(run.output_dir))
    data = read_data(run, base, saved.started if saved is not None else None)
    check_lengths(base.config, data.longest(), run.perplexity_length if run.perplexity_path else 0)
    commit = str(vars(base.config).get("_commit_hash"))
    preflight.compare(preflight.facts_of(run, config, base.source, commit, data.prints()))
    preflight.check_room(Path(run.output_dir), models.bytes_written(base, run))
    pruner = Pruner(run, base.anatomy, data.total_steps, zero.device(), writable_sizes(base.config))
    if dist.is_main() and (notice := mask_notice(run, data.total_steps)):
        print(notice, file=sys.stderr, flush=True)
    if saved is not None:
        saved.check(run, data.counts(), data.prints())
        saved.check_base(decisive(base.config))
    folder, stopping = Path(run.output_dir), stopping or Stopping()
    made = check_output(run, resumes=saved is not None)
    if dist.is_main():
        stopping.discard = lambda: discard_output(folder, made)
    trainer = Trainer(run, base, config, data, pruner, Journal(folder, data.total_steps), saved, stopping)
    # loading has found the last mistakes
    prepare_output(run, saved.metrics if saved is not None else None)
    return trainer
