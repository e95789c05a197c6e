"""A whole run: join the other processes, check the input, train, report."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.data.glue import labels_of
from apt_ds.data.tokenizer_checks import check_lengths
from apt_ds.models import attention, initial_adapters, loading
from apt_ds.models.base_config import decisive
from apt_ds.models.export.configs import writable_sizes
from apt_ds.models.loading import Base
from apt_ds.models.model_folder import check_weights
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.rules import mask_notice
from apt_ds.runtime import collectives, exit_status, heartbeat, notices, zero
from apt_ds.runtime.deterministic import deterministic
from apt_ds.runtime.error_messages import translate_error
from apt_ds.runtime.signals import Stopped, StopSignals
from apt_ds.runtime.watchdog import Watchdog
from apt_ds.training import checkpoint, preflight
from apt_ds.training.checkpoint import Checkpoint
from apt_ds.training.concluding import conclude, find_destination
from apt_ds.training.datasets import read_data
from apt_ds.training.hub import Destination
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.model_checks import check_model
from apt_ds.training.output_folder import check_output, discard_output, prepare_output
from apt_ds.training.quantized_export import write_quantized
from apt_ds.training.rewriting import with_own_answers
from apt_ds.training.run_data import Data
from apt_ds.training.summary_schema import Summary
from apt_ds.training.trackers import Trackers, check_installed
from apt_ds.training.trainer import Trainer


def train(run: RunConfig, signals: StopSignals | None = None) -> Summary:
    """Do a whole run. Collective.

    Args:
        run: the options.
        signals: how signals stop the run. By default they may end the process.

    Returns:
        What `summary.json` holds. Samples and generation speed are on rank 0 only.

    Raises:
        UserError: the input has a mistake. Nothing has been trained or written.
        RankError: ranks disagree on a decision.
        LostRank: another rank has ended.
        Stopped: a signal asked for the end, and the run is saved.
    """
    notices.start()
    with deterministic(run.optim.deterministic), signals or StopSignals() as stop_signals:
        zero.init_distributed(run.distributed.timeout, watched=True)
        with Watchdog(run.distributed.timeout, stop_signals.leave) as watchdog:
            stop_signals.tell = watchdog.tell
            trainer: Trainer | None = None
            try:
                destination = collectives.on_main(lambda: find_destination(run))
                trainer = prepare(run, stop_signals)
                summary, failure = _train_and_quantize(run, trainer, stop_signals)
                collectives.barrier()
            except (RuntimeError, MemoryError) as error:
                _abandon(trainer, error, stop_signals)
                translated = translate_error(error, watchdog)
                if translated is error:
                    raise
                raise translated from error
            except BaseException as error:
                _abandon(trainer, error, stop_signals)
                raise
        return _conclude(run, trainer, summary, failure, destination, bool(stop_signals.asked))


def _abandon(trainer: Trainer | None, error: BaseException, stop_signals: StopSignals) -> None:
    """End the trackers of a run that stopped or failed, and remove its output folder if it has nothing to keep.

    Raises:
        Stopped: a signal came before the first step, and a library has made another error of it.
    """
    stopped = isinstance(error, Stopped)
    if trainer is not None:
        trainer.metrics_logger.finish_trackers({}, "", "stopped" if stopped or stop_signals.hidden else "failed")
    stop_signals.discard()
    if not stopped:
        stop_signals.check_early()


def _conclude(
    run: RunConfig,
    trainer: Trainer,
    summary: Summary,
    failure: UserError | None,
    destination: Destination | None,
    stopped: bool,
) -> Summary:
    """Report a run whose model is written. Collective.

    Args:
        run: the options.
        trainer: has trained and written the model.
        summary: figures of the run.
        failure: why there is no quantized copy.
        destination: where to upload the model. None: nowhere.
        stopped: whether a signal came while the model was written.

    Raises:
        UserError: `failure`, after the report.
    """
    if destination is not None:
        # the card names the whole repository
        run = run.replace(hub_model_id=destination.repository)
    if stopped:
        # the run writes its summary and measures nothing more
        run = run.replace(report=False)
    summary = conclude(run, trainer, summary, destination, stopped)
    if failure is not None:
        # a launcher ends the first rank, which reports, as soon as another one has failed
        collectives.barrier()
        raise failure
    return summary


def _train_and_quantize(
    run: RunConfig, trainer: Trainer, stop_signals: StopSignals
) -> tuple[Summary, UserError | None]:
    """Run the trainer, and write the quantized copy. Collective. Returns the summary, and why there is no copy."""
    try:
        summary = trainer.run()
        # a signal may have reached one rank alone
        asked = any(collectives.gather_objects(bool(stop_signals.asked)))
        return summary, None if asked else _quantize(run, trainer, summary)
    finally:
        trainer.steps.close()
        trainer.metrics_logger.close()


def _quantize(run: RunConfig, trainer: Trainer, summary: Summary) -> UserError | None:
    """Write the quantized copy of the model, if one is asked for, and add its figures to the summary. Collective.

    Returns:
        Why there is no copy. The model is written, so the run reports first and fails then.
    """
    if run.output.export_quantization == "none":
        return None
    model = trainer.metrics_logger.folder / "model"
    try:
        summary["quantized"] = write_quantized(run, trainer.base, trainer.data, model)
    except UserError as error:
        return UserError(f"{error}. The model itself is in {model}")
    return None


def prepare(run: RunConfig, stop_signals: StopSignals | None = None) -> Trainer:
    """Check the input, load the model and make the output folder. Returns a run before its next step. Collective.

    Raises:
        UserError: the input has a mistake. Nothing has been written.
    """
    zero.init_distributed(run.distributed.timeout)
    collectives.on_main(lambda: check_installed(run.output.trackers))
    loading.quiet_transformers()
    zero.check_sections(run.distributed.deepspeed)
    base = loading.find_base(
        run.model.model_name_or_path, run.data.task, labels_of(run.data.task), run.model.trust_remote_code
    )
    output = Path(run.output.output_dir)
    saved = checkpoint.find(run.output.resume_from_checkpoint, output)
    run, initial = initial_adapters.resolve(run, base, saved.run if saved is not None else None)
    config = _check_model(run, base)
    data = _read_and_check(run, base, config, saved)
    resolved = attention.resolve(run, base.config, loading.run_dtype(run), zero.device())
    sizes = writable_sizes(base.config, base.anatomy.new_biases and run.pruning.compensates)
    pruner = Pruner(run, base.anatomy, data.total_steps, zero.device(), sizes)
    if collectives.is_main() and (notice := mask_notice(run, data.total_steps)):
        notices.warn(notice)
    if saved is not None:
        # the trainer checks the model's fingerprint too, once the model is loaded
        saved.check(run, data.counts(), data.fingerprints())
        saved.check_base(decisive(base.config))
    stop_signals = stop_signals or StopSignals()
    folders = check_output(run, saved)
    if collectives.is_main():
        stop_signals.discard = lambda: discard_output(output, folders)
    trackers = Trackers(run)
    metrics_logger = MetricsLogger(output, data.total_steps, trackers=trackers)
    trainer = Trainer(resolved, base, config, data, pruner, metrics_logger, stop_signals)
    if saved is None:
        trainer.begin(initial)
    else:
        trainer.resume(saved)
    # the folder is made last: loading the model finds the last mistakes
    prepare_output(run, saved)
    heartbeat.phase("starting trackers", limited=False)
    collectives.on_main(lambda: trackers.start(trainer.done))
    return trainer


def _check_model(run: RunConfig, base: Base) -> zero.Config:
    """Check the base model against the options. Returns DeepSpeed's configuration."""
    check_weights(base.source, f"--model_name_or_path {run.model.model_name_or_path!r}")
    config = load_config(run, collectives.world_size(), base.config.hidden_size)
    zero.check_config(config, run.distributed.deepspeed)
    preflight.check_compilers(config)
    check_model(run, base, zero.device())
    return config


def _read_and_check(run: RunConfig, base: Base, config: zero.Config, saved: Checkpoint | None) -> Data:
    """Read and check the data, with the answers that the dense model writes. Collective."""
    data = read_data(run, base, saved.started if saved is not None else None)
    _check_data(run, base, config, data)
    if run.data.rewrite_answers:
        # writing answers takes long, so that a mistake should show before
        check_output(run, saved)
        data = with_own_answers(run, base, data)
        _check_data(run, base, config, data)
    return data


def _check_data(run: RunConfig, base: Base, config: zero.Config, data: Data) -> None:
    """Check lengths, agreement of all ranks, and room on the disk. Collective."""
    check_lengths(base.config, data.longest(), run.data.perplexity_length if run.data.perplexity_path else 0)
    commit = str(vars(base.config).get("_commit_hash"))
    preflight.compare(preflight.facts_of(run, config, base.source, commit, data.fingerprints()))
    preflight.check_room(Path(run.output.output_dir), loading.bytes_written(base, run))


def main() -> None:
    """Entry point of `python -m apt_ds.training.run`: `launchers/train.py` without the dry run."""
    run = resolve(sys.argv[1:])
    if run.distributed.dry_run:
        raise UserError("--dry_run is not supported by apt_ds.training.run. Use launchers/train.py")
    # as `apt_ds.commands.train` does: the collection at every rebuild need not look at the libraries' objects
    gc.freeze()
    train(run)


if __name__ == "__main__":
    exit_status.main(main)
