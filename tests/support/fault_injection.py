"""Jobs of `multiprocess.py` with faults: signals, killed ranks, full disks, bad losses. Also the memory of a run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from apt_ds.analysis import dry_run
from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.data.glue import labels_of
from apt_ds.eval import evaluator, metrics
from apt_ds.losses import training_loss
from apt_ds.models import adapter, loading
from apt_ds.pruning import surgery
from apt_ds.runtime import collectives, watchdog, zero
from apt_ds.runtime import memory as process_memory
from apt_ds.runtime.signals import Stopped, StopSignals
from apt_ds.runtime.watchdog import Watchdog
from apt_ds.training import checkpoint, datasets, engine_checkpoint, final_model, meter
from apt_ds.training import run as training_run
from apt_ds.training.checkpoint import manifest
from tests.support.jobs import run_config, whole

# kills a stopped process once the others have ended, at the latest after a minute: the test waits for all of them
OUTLIVE = """stopped=$1; shift
for _ in $(seq 120); do
    sleep 0.5; left=0
    for other; do if kill -0 "$other" 2> /dev/null; then left=1; fi; done
    if [ $left = 0 ]; then break; fi
done
kill -KILL "$stopped"
"""
# phase: the function that begins it, which a phase calls once
PHASES = {
    "load": (loading, "load_model"),
    "step": (training_loss.TrainingLoss, "micro_batch_loss"),
    "evaluation": (evaluator, "held_out_loss"),
    "rebuild": (surgery, "apply_plan"),
    "save": (engine_checkpoint, "add_trained"),
    "write": (manifest, "checksum"),
    "export": (final_model, "export"),
}


def faulty(
    folder: str,
    where: str,
    victim: int,
    number: int,
    flags: list[str],
    count: int = 2,
    delay: float = 0.0,
    stage: int = 3,
    offload: bool = False,
) -> bool:
    """A run in which something happens to one rank in one phase.

    Args:
        folder: the folder of model and data.
        where: the phase, a key of `PHASES`.
        victim: the rank that it happens to.
        number: the signal that the rank gets. 0 fills the disk of the output folder, which must be a small one.
        flags: of the run.
        count: the fault comes when the phase has begun so often.
        delay: seconds from then to the fault.
        stage: the ZeRO stage.
        offload: whether the run offloads.

    Returns:
        Whether the phase began so often.
    """
    run = run_config(folder, stage, offload, flags)
    processes = Path(folder) / f"processes{os.environ['MASTER_PORT']}"
    processes.mkdir(exist_ok=True)
    (processes / str(collectives.rank())).write_text(str(os.getpid()))
    module, name = PHASES[where]
    original, calls = getattr(module, name), 0

    def strike() -> None:
        if number == 0:
            fill(Path(run.output.output_dir).parent)
        else:
            others = [path.read_text() for path in processes.iterdir() if path.name != str(victim)]
            send_signal(number, others)

    def struck(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and collectives.rank() == victim:
            threading.Timer(delay, strike).start() if delay else strike()
        return original(*arguments, **named)

    setattr(module, name, struck)
    training_run.train(run)
    return calls >= count


def send_signal(number: int, others: list[str]) -> None:
    """Send a signal to this process. Once it is stopped, it is killed when the processes `others` have ended."""
    if number == signal.SIGSTOP:
        subprocess.Popen(["sh", "-c", OUTLIVE, "sh", str(os.getpid()), *others], start_new_session=True)
    os.kill(os.getpid(), number)


def blocked(folder: str, victim: int, flags: list[str]) -> None:
    """A run in which rank `victim` is killed before a reduction, and no reduction of the others ever returns.

    NCCL behaves like this: the host waits in a C function, without the interpreter's lock, and nothing is raised. The
    watchdog waits 6 seconds for signs of life.
    """
    watchdog.SILENCE = 6.0
    collectives.waits_for_lost_peers = lambda: True
    original, calls = collectives.all_reduce_sum, 0

    def struck(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        # the first two are the check of the loss at the head, and the evaluation before training
        if calls < 3:
            return original(tensor)
        if collectives.rank() == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        print(f"blocked at {time.monotonic()}", flush=True)
        while True:
            ctypes.CDLL(None).pause()

    collectives.all_reduce_sum = struck
    try:
        training_run.train(run_config(folder, 2, False, flags))
    finally:
        print("unblocked", flush=True)


def unmerged(folder: str, stage: int, flags: list[str]) -> None:
    """A run in which the first rank cannot merge the second adapter that it writes."""
    original, calls = adapter.AptLinear.merged, 0

    def struck(self: adapter.AptLinear) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("spoilt by the test")
        return original(self)

    adapter.AptLinear.merged = struck
    training_run.train(run_config(folder, stage, False, flags))


def left_behind() -> None:
    """Rank 1 is killed before the first step. Rank 0 gets SIGTERM and prints which ranks its watchdog misses."""
    zero.init_distributed()
    with StopSignals() as stop_signals, Watchdog(40, stop_signals.leave) as dog:
        stop_signals.tell = dog.tell
        collectives.barrier()
        time.sleep(2 * dog.period)
        os.kill(os.getpid(), signal.SIGKILL if collectives.rank() else signal.SIGTERM)
        # rank 0 leaves after four periods. It learns of the loss before that
        time.sleep(3 * dog.period)
        print(f"found: {dog.lost()}", flush=True)
        time.sleep(8 * dog.period)


def interrupted(
    folder: str, cases: list[tuple[str, int, bool, list[str], int, list[str]]]
) -> dict[str, dict[str, Any]]:
    """A run for each case, and for each reason a run that was ended while it scored and then resumed.

    Args:
        folder: the folder of model and data.
        cases: name, stage, offload, flags, number and reasons. The run ends before its cut, at micro-batch `number`:
            by SIGTERM to rank 1 (`signal`), or by losses that are not finite (`bad`).

    Returns:
        By name and reason: how the run ended, the steps of its checkpoints, and its outcome after resuming. By name and
        `straight`: the outcome of a run that was not ended.
    """
    runs = {}
    for name, stage, offload, flags, number, whys in cases:
        flags = [*flags, "--save_steps", "0", "--max_nonfinite_steps", "1"]
        runs[name] = {"straight": whole(folder, f"{name}_straight", stage, offload, flags)}
        for why in whys:
            place = f"{name}_{why}"
            why_ended = end_scoring(folder, place, stage, offload, flags, number, why == "bad")
            steps = sorted(step for step, _ in checkpoint.numbered(Path(folder) / place))
            torch.rand(3)
            on = whole(folder, place, stage, offload, [*flags, "--resume_from_checkpoint", "last"])
            runs[name][why] = {"ended": why_ended, "steps": steps, "outcome": on}
    return runs


def end_scoring(folder: str, place: str, stage: int, offload: bool, flags: list[str], number: int, bad: bool) -> str:
    """End a run at micro-batch `number`. Returns its exit status and its message."""
    original, calls = training_loss.TrainingLoss.micro_batch_loss, 0

    def struck(self: training_loss.TrainingLoss, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, summed = original(self, *arguments)
        if calls == number and collectives.rank() == 1 and not bad:
            os.kill(os.getpid(), signal.SIGTERM)
        return (loss, summed * float("nan")) if bad and calls >= number else (loss, summed)

    training_loss.TrainingLoss.micro_batch_loss = struck
    try:
        with StopSignals() as stop_signals:
            trainer = training_run.prepare(
                run_config(folder, stage, offload, ["--output_dir", str(Path(folder) / place), *flags]), stop_signals
            )
            try:
                trainer.run()
            except (Stopped, UserError) as ended:
                return f"{getattr(ended, 'status', 2)} {ended}"
            finally:
                zero.destroy(trainer.engine)
                trainer.metrics_logger.close()
                collectives.barrier()
    finally:
        training_loss.TrainingLoss.micro_batch_loss = original
    raise AssertionError("it was not ended")


def fill(disk: Path) -> None:
    """Fill a disk, so that nothing is free."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            return


def memory(flags: list[str]) -> dict[str, int]:
    """The peak of a whole run above the bytes that the process had before it, and the estimate of that peak."""
    run = resolve(flags)
    zero.init_distributed()
    base = loading.find_base(run.model.model_name_or_path, run.data.task, labels_of(run.data.task))
    data = datasets.read_data(run, base)
    metrics.load(run.data.task)
    process = psutil.Process().memory_info().rss
    cpu, peaks, reset = torch.device("cpu"), [], process_memory.reset_peak

    def noting(device: torch.device) -> None:
        peaks.append(process_memory.peak_memory(device))
        reset(device)

    # a run resets the peak for each phase: here the largest of all phases counts
    meter.reset_peak = noting
    reset(cpu)
    training_run.train(run)
    peak = max(*peaks, process_memory.peak_memory(cpu)) - process
    config = load_config(run, collectives.world_size(), base.config.hidden_size)
    estimate = dry_run.estimate_run(run, base, data, config, collectives.world_size(), on_cpu=True)
    return {"measured": peak, "estimated": estimate.total()}
