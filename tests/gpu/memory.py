"""Memory of the GPU over many rebuilds, gradients under offload, and the line of a run without enough memory."""

from __future__ import annotations

import gc
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from apt_ds.pruning.surgery import Plan
from apt_ds.training import run as training_run
from tests.gpu.small_model import DRY, run_of
from tests.support.devices import gpu_bytes

ZEROS = ("zero2", "zero2_offload", "zero3", "zero3_offload")
REBUILDS = 3 if DRY else 16
LARGEST = 0.1  # difference of an adapter's importance between the modes of DeepSpeed, of their mean importance
FLAGS = ["--bf16", "--pruning", "none", "--rank_growth", "importance", "--pruning_phase", "1.0"]
SHARE = 0.012  # of the GPU, which a large batch exceeds


def rebuilds(work: Path, zero: str) -> dict[str, Any]:
    """Train three steps, then rebuild many times. Returns bytes after each rebuild, and the adapters' importance."""
    trainer = training_run.prepare(run_of(work, f"memory_{zero}", zero, FLAGS))
    for step in range(3):
        trainer.train_step(step)
    importance = trainer.pruner.growth.importance
    assert importance is not None
    census = []
    for _ in range(REBUILDS):
        trainer.rebuild(3, Plan())
        trainer.train_step(3)
        gc.collect()
        census.append(gpu_bytes())
    trainer.finish()
    trainer.metrics_logger.close()
    return {"census": census, "importance": importance.float().tolist()}


def grown(census: list[dict[str, int]]) -> dict[str, int]:
    """Bytes by which each kind of memory has grown from the first half of the rebuilds to the second.

    A small buffer may be on its way to the device or not. So the least of the second half counts, against the most of
    the first, without the first rebuild.
    """
    half = max(2, len(census) // 2)
    most = {key: max(each[key] for each in census[1:half]) for key in census[0]}
    least = {key: min(each[key] for each in census[half:]) for key in census[0]}
    return {key: least[key] - most[key] for key in most if least[key] > most[key]}


def check_rebuilds(work: Path, results: dict[str, Any]) -> int:
    """Rebuild in every mode of DeepSpeed. Returns how many failed."""
    failed = 0
    for zero in ZEROS:
        try:
            results[zero] = rebuilds(work, zero)
            leaks = grown(results[zero]["census"])
            last = {key: f"{value / 1e6:.1f}" for key, value in results[zero]["census"][-1].items()}
            text = ", ".join(f"{key} {value} MB" for key, value in last.items())
            problem = "".join(f"; {key} has grown by {count:,} bytes" for key, count in leaks.items())
            failed += bool(leaks)
            print(f"{'FAIL' if leaks else 'OK  '} {zero}: {text} after {REBUILDS} rebuilds{problem}", flush=True)
        except Exception as error:
            traceback.print_exc()
            failed += 1
            print(f"FAIL {zero}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
    return failed


def check_importance(results: dict[str, Any]) -> int:
    """Every mode of DeepSpeed must see the same gradients. Returns how many do not.

    Kernels round bf16 differently where weights lie elsewhere in memory. An adapter of little importance is all
    rounding, so differences are relative to the mean.
    """
    failed = 0
    expected = results["zero2"]["importance"]
    for zero, figures in results.items():
        pairs = zip(figures["importance"], expected, strict=True)
        off = max(abs(a - b) for a, b in pairs) / (sum(expected) / len(expected))
        failed += off > LARGEST
        print(f"{'FAIL' if off > LARGEST else 'OK  '} importance of adapters: {zero} is off from zero2 by {off:.1e}")
    return failed


def check_shortage(work: Path) -> int:
    """A run without enough memory must end with one line of advice. Returns 1 if it does not."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(SHARE)
    large = ["--bf16", "--calibration_steps", "1", "--per_device_train_batch_size", "256"]
    try:
        training_run.train(run_of(work, "short", "zero2", large))
    except Exception as error:
        text = " ".join(str(error).split())
        good = "out of memory" in text
        print(f"{'OK  ' if good else 'FAIL'} without enough memory: {type(error).__name__}: {text[:200]}")
        return int(not good)
    print(f"FAIL without enough memory: the run fits into {SHARE} of the GPU")
    return 1


def main() -> None:
    """Run all three. Status 1 if one fails."""
    work, figures = Path(sys.argv[1]), Path(sys.argv[2])
    results: dict[str, Any] = {}
    failed = check_rebuilds(work, results)
    figures.write_text(json.dumps(results), encoding="utf8")
    failed += check_importance(results) if "zero2" in results else 1
    failed += check_shortage(work) if torch.cuda.is_available() else 0
    sys.stdout.flush()
    sys.exit(min(failed, 1))


if __name__ == "__main__":
    main()
