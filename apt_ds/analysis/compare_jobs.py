"""The processes of a comparison: training, MMLU and the suite `local`, each as a user would start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import psutil

from apt_ds.analysis.compare_table import LOCAL_FILE, MMLU_FILE, Trial
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime.signals import Stopped

if TYPE_CHECKING:
    from apt_ds.analysis.compare import Comparison

TRAIN, MMLU, EVALUATE = "apt_ds.training.run", "apt_ds.commands.mmlu", "apt_ds.commands.evaluate"
SCRIPTS = {TRAIN: "train.py", MMLU: "eval_mmlu.py", EVALUATE: "evaluate.py"}
# what asks the comparison to stop
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_training(comparison: Comparison, trial: Trial, config: RunConfig) -> None:
    """Run train.py under the deepspeed launcher, from the last checkpoint of an interrupted run if there is one."""
    # torch takes seconds to import: a mistake in the options should not wait for it
    from apt_ds.runtime import collectives
    from apt_ds.training.checkpoint import LAST, MANIFEST

    if any(trial.folder.glob(f"checkpoint-*/{MANIFEST}")):
        config = config.replace(resume_from_checkpoint=LAST)
    file = trial.folder.with_name(f"{trial.folder.name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    config.save(file)
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "warning"]
    # the launcher's own port is fixed: two comparisons on a machine would meet there
    launcher += ["--num_accelerators", str(comparison.processes), "--master_port", str(collectives.free_port())]
    run_process(trial, [*launcher, "--module", TRAIN, "--config", str(file)])
    file.unlink()


def run_mmlu(comparison: Comparison, trial: Trial, trust: bool) -> None:
    """Run eval_mmlu.py on what a run has left."""
    argv = ["--model", str(trial.folder / "model"), "--data_dir", comparison.mmlu_data]
    argv += ["--sample", str(comparison.mmlu_sample), "--json", str(trial.folder / MMLU_FILE), "--bf16"]
    argv += ["--trust_remote_code"] if trust else []
    run_process(trial, [sys.executable, "-m", MMLU, *argv])


def run_local_suite(comparison: Comparison, trial: Trial, trust: bool) -> None:
    """Run evaluate.py with the suite `local` on what a run has left."""
    argv = ["--model", str(trial.folder / "model"), "--suite", "local", "--data_dir", comparison.local_data, "--bf16"]
    argv += ["--limit", str(comparison.local_limit), "--json", str(trial.folder / LOCAL_FILE)]
    argv += ["--trust_remote_code"] if trust else []
    run_process(trial, [sys.executable, "-m", EVALUATE, *argv])


def finished(trial: Trial) -> bool:
    """Whether a run has left its last file."""
    return (trial.folder / "summary.json").exists()


def only_finished(comparison: Comparison, trials: list[Trial]) -> list[Trial]:
    """The runs that have ended.

    Raises:
        UserError: none has, or one has answers to other questions.
    """
    ended = [trial for trial in trials if finished(trial)]
    if not ended:
        raise UserError(f"--finished_only found no finished run in {trials[0].folder.parent}: start without it first")
    for trial in ended:
        for flag, number, data, file, same in (
            ("--mmlu_data", "--mmlu_sample", comparison.mmlu_data, MMLU_FILE, has_mmlu),
            ("--local_suite", "--local_limit", comparison.local_data, LOCAL_FILE, has_local_suite),
        ):
            if data and (trial.folder / file).exists() and not same(comparison, trial):
                raise UserError(
                    f"{trial.folder} has answers to other questions of {flag}. Give the same {flag} and {number}, or "
                    "start without --finished_only to ask again"
                )
    return ended


def has_mmlu(comparison: Comparison, trial: Trial) -> bool:
    """Whether a run has the answers to these questions of MMLU."""
    return _holds(trial.folder / MMLU_FILE, mmlu_digest(comparison.mmlu_data, comparison.mmlu_sample))


def has_local_suite(comparison: Comparison, trial: Trial) -> bool:
    """Whether a run has the answers to these questions of the suite `local`."""
    return _holds(trial.folder / LOCAL_FILE, local_digest(comparison.local_data, comparison.local_limit))


def _holds(file: Path, questions: str) -> bool:
    """Whether a file has the figures of questions with this hash. Those of earlier versions may lack the hash."""
    return file.exists() and bool(json.loads(file.read_text(encoding="utf8")).get("questions") == questions)


@cache
def mmlu_digest(data: str, sample: int) -> str:
    """A hash of the questions that eval_mmlu.py asks, which are read once.

    Args:
        data: a folder of MMLU's CSV files.
        sample: number of questions. 0: all.

    Raises:
        UserError: the folder lacks a file or has fewer questions.
    """
    from apt_ds.data import mmlu
    from apt_ds.runtime import collectives

    every = mmlu.load(data, flag="--mmlu_data")
    if sample > every.count():
        raise UserError(f"--mmlu_sample {sample} is not allowed: --mmlu_data {data!r} has {every.count()} questions")
    return collectives.digest(every.sampled(sample, seed=0) if sample else every)


@cache
def local_digest(data: str, limit: int) -> str:
    """A hash of the questions of the suite `local`, which are read once."""
    from apt_ds.data import choice_questions
    from apt_ds.runtime import collectives

    return collectives.digest(choice_questions.load(data, limit))


def run_process(trial: Trial, argv: list[str]) -> None:
    """Start a process and wait; it speaks for itself on the terminal.

    Raises:
        UserError: it failed.
        Stopped: a signal has ended it and the comparison.
    """
    script = next(name for module, name in SCRIPTS.items() if module in argv)
    print(f"{trial.folder.name}: {script}", flush=True)
    package = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(argv, env=os.environ | {"PYTHONPATH": paths})
    # nohup ignores SIGHUP, and so does this
    heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop_waiting) for number in heard}
    try:
        status = process.wait()
    except Stopped:
        end_process(process)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status:
        raise UserError(f"{trial.folder.name} ended with status {status}; run again to go on with what is missing")


def stop_waiting(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal: leave the wait for a run."""
    raise Stopped(number, "stopped; run again to go on with what is missing")


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a run with the launcher and ranks it has started; a rank saves a checkpoint first."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
        # the ranks alone: a launcher that is asked to end kills its ranks at once
        ranks = [one for one in started if not one.children()]
        for one in ranks or [psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        psutil.wait_procs(started)
    process.wait()
