"""Jobs of `multiprocess.py` in which one rank differs from the others or fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn, cast

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.runtime import collectives, zero
from apt_ds.runtime.signals import StopSignals
from apt_ds.training import checkpoint, preflight
from apt_ds.training import run as training_run
from apt_ds.training.checkpoint import finding
from apt_ds.training.early_end import EarlyEnd
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.metrics_schema import MetricsLine
from tests.support.jobs import run_config, zero_json


def disagree(odd: int) -> None:
    """All ranks but one have the same plan."""
    zero.init_distributed()
    collectives.agree("the plan of step 7", "other" if collectives.rank() == odd else "same")


def differing(folder: str, odd: int, change: str) -> None:
    """A run in which one rank has other data, another model, flag, DeepSpeed file or version."""
    # every rank a node of its own: ranks of one node share what the first has read
    os.environ["LOCAL_RANK"] = "0"
    zero.init_distributed()
    other = collectives.rank() == odd
    flags = ["--sparsity", "0.35"] if other and change == "flag" else []
    run = run_config(folder, 2 if other and change == "config" else 3, False, flags)
    if other and change == "data":
        run = run.replace(data_path=str(Path(folder) / "other" / "data.json"))
    if other and change == "model":
        run = run.replace(model_name_or_path=str(Path(folder) / "other" / "model"))
    if other and change == "version":
        # what a node with another release would say of itself
        real = preflight.version
        preflight.version = lambda name: "0.0.1" if name == "transformers" else real(name)
    training_run.train(run)


def group_without_a_rank() -> list[str]:
    """The errors of ranks whose group was made by a file or an address, without a launcher's variables."""
    zero.init_distributed()
    place = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    text = ""
    try:
        zero.init_distributed()
    except UserError as error:
        text = str(error)
    os.environ.update(place)
    return collectives.gather_objects(text)


def unreadable_on(odd: int, folder: str) -> str:
    """The error of the ranks for a checkpoint whose tensors one of them cannot read."""
    zero.init_distributed()
    if collectives.rank() == odd:
        # what a stale handle of a network file system gives

        def stale(path: Path, names: list[str]) -> NoReturn:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        finding.shards.read = stale
    try:
        checkpoint.find(folder, Path(folder).parent)
    except UserError as error:
        errors = collectives.gather_objects(str(error))
    return " ".join(sorted(set(errors)))


def ended_by_a_full_disk(folder: str) -> list[list[Any]]:
    """Which ranks have a reason to end a run, and what ends each, where the first cannot write its metrics."""
    zero.init_distributed()
    if collectives.is_main():
        (Path(folder) / "metrics.jsonl").symlink_to("/dev/full")
    logger = MetricsLogger(Path(folder), 9, quiet=True)
    end = EarlyEnd(resolve(["--deepspeed", zero_json(folder, 2)]), StopSignals(), logger)
    line = {"step": 1, "loss": 1.0, "kept": 1.0, "ranks": {"mean": 8.0}}
    logger.step(cast(MetricsLine, line))
    reasons = collectives.gather_objects(end.received)
    end.listen_if(sum(reasons))
    try:
        end.end("after step 1")
    except UserError as error:
        return [reasons, collectives.gather_objects(str(error))]
    return [reasons]
