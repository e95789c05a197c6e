"""Runs as functions: what the commands do, for a Python process that goes on afterwards.

Every function raises exceptions and leaves the process usable: no engine, process group, signal handler or environment
variable of a run remains, and `runtime/caller_state.py` puts back what else a run changes. Under a launcher with
several processes every rank calls the same functions. The process group then stays for the next call, and a lost rank
or a signal before the first step still ends the process, as a blocked collective cannot raise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.config.paths import shortened
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig

# what makes a run of `prune`: warm-up begins at a learning rate of 0, so that its one step changes no weight
PRUNE_ALONE: dict[str, Any] = {
    "method": "apt",
    "pruning": "pretuning",
    "rank_growth": "none",
    "distill": "none",
    "max_steps": 1,
    "warmup_steps": 1,
    "save_steps": 0,
}


def train(run: RunConfig) -> dict[str, Any]:
    """Train and prune as `apt-ds-train` does. Collective.

    Args:
        run: the configuration, such as `RunConfig(model_name_or_path=..., data_path=..., output_dir=...,
            deepspeed="ds_configs/zero2.json")`.

    Returns:
        The content of `summary.json` in the output folder, on every rank.

    Raises:
        UserError: a mistake in the configuration, the model or the data.
        RankError: ranks disagree on a decision.
        LostRank: another rank is gone.
        Stopped: a signal stopped the run. From its first step on, the run has then saved a checkpoint.
    """
    if not isinstance(run, RunConfig):
        raise UserError(f"apt_ds.train takes a RunConfig and got {type(run).__name__}")
    run.check()
    if run.distributed.dry_run:
        raise UserError("dry_run=True is not supported by apt_ds.train: use apt-ds-train --dry_run")
    from apt_ds.analysis.run_report.writing import write_after_run
    from apt_ds.runtime import collectives, launch_variables
    from apt_ds.runtime.signals import StopSignals
    from apt_ds.training.run import train as train_here

    with _clean_process():
        several = collectives.ready() and collectives.world_size() > 1
        summary = train_here(run, StopSignals(exits=several or launch_variables.launched()))
        write_after_run(run)
        # as JSON has it: lists for tuples, text for keys
        return collectives.on_main(lambda: json.loads(json.dumps(summary)))


def prune(model: str, data: str, output_dir: str, deepspeed: str, **flags: Any) -> dict[str, Any]:
    """Score the blocks of a model, cut the least important ones and write the smaller model, without tuning it.

    The run scores `calibration_steps` batches of the data and cuts once. Its one optimizer step has a learning rate of
    0, so that all weights keep the values that the cut leaves. Collective.

    Args:
        model: a hub name, a folder, or a built-in model.
        data: the data to score on, as `RunConfig(data_path=...)` takes it.
        output_dir: a folder for the model and its summary.
        deepspeed: the path of a DeepSpeed JSON.
        flags: other flags of `RunConfig`, such as `sparsity=0.5`.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: as `train`, and for a flag that this function decides.
    """
    if decided := sorted(flags.keys() & PRUNE_ALONE.keys()):
        raise UserError(f"apt_ds.prune decides {decided[0]} itself: use apt_ds.train(RunConfig(...)) to choose it")
    places = {"model_name_or_path": model, "data_path": data, "output_dir": output_dir, "deepspeed": deepspeed}
    return train(RunConfig(**(flags | places | PRUNE_ALONE)))


def evaluate(model: str | os.PathLike[str], *, mmlu: bool = False, **options: Any) -> dict[str, Any]:
    """Evaluate a finished model as `apt-ds-evaluate` does, or as `apt-ds-mmlu` does. Collective.

    Args:
        model: a folder, a hub name, or a built-in model.
        mmlu: whether to measure MMLU. Otherwise one of the options `perplexity`, `suite`, `tasks` and `efficiency`
            chooses what is measured.
        options: options of the command without dashes, such as `perplexity="corpus.txt", block_length=512`.

    Returns:
        The figures that the command prints, by name.

    Raises:
        UserError: a mistake in the options, the model or the data.
    """
    from apt_ds.commands import evaluate as evaluate_command
    from apt_ds.commands import mmlu as mmlu_command
    from apt_ds.eval import commands

    if "help" in options:
        raise UserError("apt_ds.evaluate has no option help: apt-ds-evaluate --help lists the options")
    argv = ["--model", str(model), *_argv(options)]
    given = (mmlu_command if mmlu else evaluate_command).parser().read(argv)
    with _clean_process():
        return commands.run_mmlu(given) if mmlu else evaluate_command.evaluate(given)


def export(folder: str | os.PathLike[str], **flags: Any) -> dict[str, Any]:
    """Write the model of a finished run from the checkpoint of its last step, without training. Collective.

    A run leaves that checkpoint where its export has failed, or where `save_steps` asks for it.

    Args:
        folder: the output folder of a run, or one of its checkpoints.
        flags: flags to change, such as `export_bits=16` or `deepspeed="other.json"`.

    Returns:
        The content of `summary.json`. The model is in `model/` of the output folder.

    Raises:
        UserError: no configuration or checkpoint, a checkpoint before the last step, one of another run, or a flag that
            this function decides.
    """
    from apt_ds.runtime.zero import temporary_world
    from apt_ds.training import checkpoint

    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"apt_ds.export takes the output folder of a run and got {type(folder).__name__}")
    place = Path(folder)
    named = os.path.isfile(place / checkpoint.MANIFEST)
    output = place.parent if named else place
    if not os.path.isfile(output / "config.yaml"):
        raise UserError(f"{shortened(str(folder))!r} is not the output folder of a run: config.yaml is missing")
    with temporary_world():
        saved = checkpoint.find(str(place) if named else checkpoint.LAST, output)
    assert saved is not None
    if saved.step < saved.counts["total_steps"]:
        raise UserError(
            f"{saved.path} is of step {saved.step} of {saved.counts['total_steps']}: training has not finished. "
            f"Continue it by apt_ds.train with resume_from_checkpoint={checkpoint.LAST!r}"
        )
    own = {"output_dir": str(output), "resume_from_checkpoint": saved.path}
    if decided := sorted(flags.keys() & own.keys()):
        raise UserError(f"apt_ds.export decides {decided[0]} itself: it goes on with the run of {folder!r}")
    return train(resolve(["--config", str(output / "config.yaml")]).replace(**(flags | own)))


def load_adapters(folder: str, base: str = "", **options: Any) -> Any:
    """The base model under the adapters that `export_adapters=True` wrote, as a `peft.PeftModel`.

    Args:
        folder: `adapters/` of a run's output folder.
        base: a folder or hub name. '': the base that the adapters name, or `base/` beside them.
        options: arguments of `from_pretrained` for the base, such as `dtype=torch.float32`.

    Raises:
        UserError: the folder holds no such adapters, the base is another model, or peft is not installed.
    """
    from apt_ds.models.peft_loading import load_adapters as load

    return load(folder, base, **options)


def _argv(options: dict[str, Any]) -> list[str]:
    """Options as a command line. True is a flag without a value, False and None leave it out."""
    argv = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        # with =, a value may begin with a dash
        argv.append(f"--{name}" if value is True else f"--{name}={text}")
    return argv


@contextmanager
def _clean_process() -> Iterator[None]:
    """Run inside, then reset what a run changes in its process."""
    import torch

    from apt_ds.runtime import caller_state, heartbeat, profiler
    from apt_ds.runtime.zero import temporary_world, whole_while_making

    try:
        # transformers loads sharded weights as long as it sees a caller's own configuration of ZeRO 3
        with caller_state.restored(), whole_while_making(), temporary_world():
            yield
    finally:
        heartbeat.phase("starting", limited=False)
        profiler.NOW.start(torch.device("cpu"), on=False)
