"""More jobs of `worlds.py`: runs that something happens to, and what a run takes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import psutil
import torch
from jobs import run_config

from apt_ds import checkpoint, dist, dry_run, feed, journal, lesson, main, models, resume, surgery, zero
from apt_ds.arguments import resolve
from apt_ds.ds_config import load_config

# phase: what is called once in it, at its start
PHASES = {
    "step": (lesson.Lesson, "micro"),
    "rebuild": (surgery, "operate"),
    "save": (resume, "engine_state"),
    "write": (checkpoint, "_seal"),
}


def faulty(
    folder: str, where: str, victim: int, number: int, flags: list[str], count: int = 2, delay: float = 0.0
) -> None:
    """A run in which rank `victim` gets signal `number`, `delay` seconds after phase `where` has begun `count` times.

    number 0: the disk of the output folder, which must be a small one, is full from then on.
    """
    run = run_config(folder, 3, False, flags)
    module, name = PHASES[where]
    original, calls = getattr(module, name), 0

    def strike() -> None:
        if number == 0:
            fill(Path(run.output_dir).parent)
        elif number == signal.SIGSTOP:
            # so that the test ends: long after the others should have
            subprocess.Popen(["sh", "-c", f"sleep 30; kill -KILL {os.getpid()}"], start_new_session=True)
        if number:
            os.kill(os.getpid(), number)

    def struck(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and dist.rank() == victim:
            threading.Timer(delay, strike).start() if delay else strike()
        return original(*arguments)

    setattr(module, name, struck)
    main.train(run)


def fill(disk: Path) -> None:
    """Leave nothing free."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            return


def memory(flags: list[str]) -> dict[str, int]:
    """Peak of a whole run above what the process had before it, and the estimate of it, in bytes."""
    run = resolve(flags)
    zero.init_distributed()
    base = models.find_base(run.model_name_or_path)
    data = feed.read_data(run, base)
    process = psutil.Process().memory_info().rss
    cpu, peaks, reset = torch.device("cpu"), [], journal.reset_peak

    def noting(device: torch.device) -> None:
        peaks.append(journal.peak_memory(device))
        reset(device)

    # a run measures its phases one by one; here all of them count
    journal.reset_peak = noting
    reset(cpu)
    main.train(run)
    peak = max(*peaks, journal.peak_memory(cpu)) - process
    config = load_config(run, dist.world_size(), base.config.hidden_size)
    found = dry_run.estimate_run(run, base, data, config, dist.world_size(), on_cpu=True)
    return {"measured": peak, "estimated": found.total()}
