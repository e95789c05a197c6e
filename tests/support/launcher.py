"""Arguments of short runs, and how `deepspeed launchers/train.py` ends with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import deepspeed
import pytest

from apt_ds.config.resolve import resolve
from apt_ds.runtime import caller_state, collectives, exit_status
from apt_ds.runtime.zero.world import ALONE
from apt_ds.training import run
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT

STEPS = 8
PRETUNING = ["--calibration_steps", "3"]
# a cut without a repair
PLAIN = ["--repair", "none"]
GRADUAL = ["--pruning", "gradual", "--structure", "uniform", "--mask_step", "0.25"]


class Place(NamedTuple):
    """Inputs without a mistake. A test may spoil one of them."""

    folder: Path

    def words(self, output: Path, *more: str, deepspeed: str | Path = ROOT / "ds_configs" / "zero2.json") -> list[str]:
        """Arguments of a short run that prunes 40 %. `more` overrides them."""
        return [
            *["--deepspeed", str(deepspeed), "--model_name_or_path", str(self.folder / "model")],
            *["--data_path", str(self.folder / "data.json"), "--output_dir", str(output)],
            *["--max_steps", str(STEPS), "--sparsity", "0.4", "--prune_every", "2", "--align", "4", "--rank", "2"],
            *["--learning_rate", "1e-2", "--per_device_train_batch_size", "2", "--max_seq_length", "64"],
            *["--eval_size", "4", "--report_samples", "1", "--run_report", "false", *more],
        ]

    def spoiled(self, name: str, content: object) -> str:
        """Write a data or DeepSpeed file. `content` is its text, or a value for JSON. Returns its path."""
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf8")
        return str(path)


class Ended(NamedTuple):
    """How a launch ended."""

    status: int
    out: str
    err: str

    @property
    def mistakes(self) -> list[str]:
        """The lines that begin with `error: `."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def launch(processes: int, words: list[str], timeout: float = 300) -> Ended:
    """Run `deepspeed launchers/train.py` with these arguments. All its processes have ended when this returns."""
    launcher = Path(sys.executable).with_name("deepspeed")
    if not launcher.is_file():
        pytest.skip("the deepspeed command is not next to this python")
    head = [str(launcher), "--log_level", "warning", "--num_accelerators", str(processes)]
    head += ["--master_port", str(collectives.free_port()), "launchers/train.py"]
    process = subprocess.Popen(
        [*head, *words],
        cwd=ROOT,
        env=multiprocess.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"not all processes ended within {timeout} seconds: {process.communicate()}")
    return Ended(process.returncode, out, err)


def start(processes: int, words: list[str], script: str = "train", timeout: float = 300) -> Ended:
    """Run `launchers/<script>.py` on so many ranks, without the launcher, which takes seconds to start.

    Both `out` and `err` are all that the ranks write.
    """
    ended = multiprocess.attempt(processes, "script_jobs.script", {"script": script, "words": words}, timeout)
    assert len(set(ended.statuses)) == 1, ended
    status = ended.statuses[0]
    assert status is not None
    return Ended(status, ended.text, ended.text)


Run = Callable[..., Ended]


def inputs(folder: Path) -> Place:
    """The tiny model and its data, written to a folder."""
    tiny.save_model(folder / "model")
    tiny.save_data(folder / "data.json")
    return Place(folder)


@contextmanager
def own_world() -> Iterator[None]:
    """Give this process the environment of a world of one, as the launcher would set it."""
    with caller_state.restored(), pytest.MonkeyPatch.context() as patch:
        for name in ALONE:
            # so that what a run sets inside is undone too
            patch.setenv(name, "")
            patch.delenv(name)
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "OMP_NUM_THREADS": "1"}
        for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(collectives.free_port())}.items():
            patch.setenv(name, value)
        try:
            yield
        finally:
            # this process goes on: DeepSpeed must forget its groups together with torch's
            if collectives.ready():
                deepspeed.comm.destroy_process_group()


def caller(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `launchers/train.py` in this process, which must be a world of one."""
    return lambda words: _ended(lambda: run.train(resolve(words)), capfd, monkeypatch)


def script_caller(
    main: Callable[[], object], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs a script whose function is `main` in this process, which must be a world of one."""

    def call(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["script", *words])
        return _ended(main, capfd, monkeypatch)

    return call


def _ended(action: Callable[[], object], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ended:
    """How a process that does `action` would end."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    capfd.readouterr()
    monkeypatch.setattr(exit_status, "leave", leave)
    # the next run of this process uses the same group
    monkeypatch.setattr(collectives, "shut_down", lambda: None)
    try:
        exit_status.main(action)
        status = 0
    except SystemExit as end:
        status = int(str(end.code))
    return Ended(status, *capfd.readouterr())
