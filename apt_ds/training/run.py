"""A whole run: join the world, find every mistake before anything is written, train, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.data.glue import labels_of
from apt_ds.data.tokenizer_checks import check_lengths
from apt_ds.models import loading, quantization_checks
from apt_ds.models.base_config import decisive
from apt_ds.models.export.configs import writable_sizes
from apt_ds.models.model_folder import check_weights
from apt_ds.models.positions import check_positions
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.rules import mask_notice
from apt_ds.runtime import collectives, exit_status, zero
from apt_ds.runtime.error_messages import translate_error
from apt_ds.runtime.signals import StopSignals
from apt_ds.runtime.watchdog import Watchdog
from apt_ds.training import checkpoint, preflight
from apt_ds.training.datasets import read_data
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.output_folder import check_output, discard_output, prepare_output
from apt_ds.training.report import report
from apt_ds.training.trainer import Trainer


def train(run: RunConfig, signals: StopSignals | None = None) -> dict[str, Any]:
    """Do the whole run; returns what `summary.json` holds. Every rank calls it.

    signals: how signals stop the run; by default they may end the process.

    Raises:
        UserError: a mistake in the input, found before anything is trained or written.
        RankError: ranks disagree on a decision.
        LostRank: another rank is gone.
        Stopped: a signal has asked for it, and the run is saved.
    """
    with signals or StopSignals() as stop_signals:
        zero.init_distributed(run.distributed.timeout)
        with Watchdog(run.distributed.timeout, stop_signals.leave) as watchdog:
            stop_signals.tell = watchdog.tell
            try:
                trainer = prepare(run, stop_signals)
                try:
                    figures = trainer.run()
                finally:
                    trainer.metrics_logger.close()
                collectives.barrier()
            except BaseException as error:
                stop_signals.discard()
                if not isinstance(error, RuntimeError | MemoryError):
                    raise
                told = translate_error(error, watchdog)
                if told is error:
                    raise
                raise told from error
        if stop_signals.asked:
            # it came while the model was written: the summary is, too, and what takes long is left out
            run = run.replace(report=False)
        figures = report(run, trainer.base, trainer.data, figures, trainer.metrics_logger.folder)
        if collectives.is_main():
            trainer.tidy()
        return figures


def prepare(run: RunConfig, stop_signals: StopSignals | None = None) -> Trainer:
    """Everything up to the first step; what the user got wrong comes out here, before anything is written."""
    zero.init_distributed(run.distributed.timeout)
    loading.quiet_transformers()
    zero.check_sections(run.distributed.deepspeed)
    base = loading.find_base(
        run.model.model_name_or_path, run.data.task, labels_of(run.data.task), run.model.trust_remote_code
    )
    check_weights(base.source, f"--model_name_or_path {run.model.model_name_or_path!r}")
    config = load_config(run, collectives.world_size(), base.config.hidden_size)
    zero.check_config(config, run.distributed.deepspeed)
    quantization_checks.check(run, base.anatomy, zero.device())
    check_positions(base.config, run.data.max_seq_length)
    saved = checkpoint.find(run.output.resume_from_checkpoint, Path(run.output.output_dir))
    data = read_data(run, base, saved.started if saved is not None else None)
    check_lengths(base.config, data.longest(), run.data.perplexity_length if run.data.perplexity_path else 0)
    commit = str(vars(base.config).get("_commit_hash"))
    preflight.compare(preflight.facts_of(run, config, base.source, commit, data.fingerprints()))
    preflight.check_room(Path(run.output.output_dir), loading.bytes_written(base, run))
    pruner = Pruner(run, base.anatomy, data.total_steps, zero.device(), writable_sizes(base.config))
    if collectives.is_main() and (notice := mask_notice(run, data.total_steps)):
        print(notice, file=sys.stderr, flush=True)
    if saved is not None:
        saved.check(run, data.counts(), data.fingerprints())
        saved.check_base(decisive(base.config))
    folder, stop_signals = Path(run.output.output_dir), stop_signals or StopSignals()
    made = check_output(run, resumes=saved is not None)
    if collectives.is_main():
        stop_signals.discard = lambda: discard_output(folder, made)
    trainer = Trainer(run, base, config, data, pruner, MetricsLogger(folder, data.total_steps), saved, stop_signals)
    # loading has found the last mistakes
    prepare_output(run, saved.metrics if saved is not None else None)
    return trainer


def main() -> None:
    """Entry point of `python -m apt_ds.training.run`: `launchers/train.py` without the dry run."""
    run = resolve(sys.argv[1:])
    if run.distributed.dry_run:
        raise UserError("--dry_run is not supported by apt_ds.training.run; use launchers/train.py")
    train(run)


if __name__ == "__main__":
    exit_status.main(main)
