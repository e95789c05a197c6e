"""Where a scored step of a dense model goes: phases by the package, kernels and waits by torch's profiler."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from apt_ds.analysis.bench.variants import VARIANTS, options
from apt_ds.analysis.benchmark import inputs
from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.resolve import resolve
from apt_ds.models.export.configs import writable_sizes
from apt_ds.pruning.pruner import Pruner
from apt_ds.runtime import profiler, zero
from apt_ds.runtime.files import write_json
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.trainer import Trainer
from tests.support.paths import ROOT

DRY = bool(os.environ.get("DRY"))
PLAIN, WATCHED = (1, 1) if DRY else (5, 3)
# what makes the host wait for the GPU, or the GPU for the host
WAITS = ("aten::item", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpyAsync", "cudaMalloc")


def trainer_of(sizes: str, length: str, folder: Path) -> Trainer:
    """A trainer that scores a dense model of random weights in every step."""
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--bf16", "--profile", "--data_path", "random"]
    words += ["--model_name_or_path", f"random:{sizes}", "--max_seq_length", length]
    words += ["--per_device_train_batch_size", os.environ.get("BATCH", "8"), *(["--align", "8"] if DRY else [])]
    run = resolve(words)
    run = run.replace(**options(VARIANTS["dense"], run))
    zero.init_distributed()
    base, data = inputs(run)
    pruner = Pruner(run, base.anatomy, data.total_steps, zero.device(), writable_sizes(base.config))
    config = load_config(run, 1, base.config.hidden_size)
    trainer = Trainer(run, base, config, data, pruner, MetricsLogger(folder, 0, quiet=True))
    trainer.begin()
    return trainer


def seconds_of(trainer: Trainer, numbers: range) -> float:
    """Seconds of an average step, scores and decision included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for number in numbers:
        trainer.train_step(number)
        trainer.pruner.advance(number + 1)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(numbers)


def counts(event: Any, on_gpu: bool) -> bool:
    """Whether an event's own time counts. On a GPU only kernels do.

    Operations and ranges of `record_function` report the time of their kernels too.
    """
    return event.device_type == DeviceType.CUDA and not event.is_user_annotation if on_gpu else True


def waits_of(events: Iterable, steps: int) -> dict[str, dict[str, float]]:
    """Calls a step and milliseconds of the host a step, of each kind of wait."""
    return {
        event.key: {"calls": event.count / steps, "milliseconds": event.self_cpu_time_total / 1e3 / steps}
        for event in events
        if event.key in WAITS
    }


def main() -> None:
    """Profile a step and write the figures."""
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(sys.argv[1], sys.argv[2], Path(folder))
        seconds_of(trainer, range(2))
        plain = seconds_of(trainer, range(2, 2 + PLAIN))
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as seen:
            watched = seconds_of(trainer, range(10, 10 + WATCHED))
        events = seen.key_averages()
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        busy = sum(getattr(event, key) for event in events if counts(event, on_gpu)) / 1e6 / WATCHED
        phases = profiler.NOW.summary()
        print(profiler.render(phases))
        print(events.table(sort_by=key, row_limit=25, max_name_column_width=70))
        waits = waits_of(events, WATCHED)
        for name, wait in waits.items():
            print(f"{name}: {wait['calls']:.1f} a step, {wait['milliseconds']:.2f} ms of the host a step")
        figures = {"step_seconds": plain, "watched_seconds": watched, "busy_seconds": busy, "waits": waits}
        write_json(Path(sys.argv[3]), figures | {"phases": phases[profiler.DENSE]["seconds"]})
        trainer.pruner.remove_hooks()
        zero.destroy(trainer.engine)
        trainer.metrics_logger.close()
    print(f"OK   a step takes {plain:.4f} s, {watched:.4f} while watched; the device is busy {busy:.4f} s of it")


if __name__ == "__main__":
    main()
