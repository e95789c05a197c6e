"""The recorded figures of seven short runs. `python -m tests.support.golden` records them again in `golden.json`.

A change of structure must not change losses, decisions or bytes of the written model. The figures are right for the
platform that the file names. Kernels of other platforms round differently.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.support import tiny
from tests.support.launcher import GRADUAL, PLAIN, PRETUNING, inputs, launch
from tests.support.paths import ROOT

FILE = Path(__file__).with_name("golden.json")


class Short(NamedTuple):
    """One of the runs: its inputs, its DeepSpeed file, its number of processes and its other flags."""

    inputs: str
    deepspeed: str
    processes: int
    flags: list[str]


RUNS = {
    "llama-zero3-gradual-two-ranks": Short("llama", "zero3", 2, GRADUAL),
    "llama-zero2-bf16-pretuning": Short("llama", "zero2", 1, [*PRETUNING, *PLAIN, "--bf16"]),
    "llama-zero3-offload": Short("llama", "zero3_offload", 1, [*PRETUNING, *PLAIN]),
    "llama-4-bits": Short("blocks", "zero2", 1, [*PRETUNING, *PLAIN, "--base_bits", "4", "--bf16", "--align", "64"]),
    "llama-repaired": Short("llama", "zero3", 1, PRETUNING),
    "bert-distilled": Short("bert-classes", "zero2", 1, [*GRADUAL, "--distill", "--structure", "adaptive"]),
    "t5": Short("t5", "zero2", 1, [*GRADUAL, "--structure", "adaptive"]),
}


def platform_name() -> str:
    """What decides how kernels round."""
    kernels = torch.backends.cpu.get_cpu_capability()
    versions = " ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "transformers"))
    return f"{platform.machine()} {kernels} {cpu_model()} {versions}"


def cpu_model() -> str:
    """The processor's name, or an empty text where the system has none to read."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def figures(run: Short, folder: Path) -> dict[str, Any]:
    """Losses by step, sizes and hashes of the written weights of one run."""
    folder.mkdir(parents=True)
    if run.inputs == "llama":
        place = inputs(folder)
        named: list[str] = []
    elif run.inputs == "blocks":
        place = inputs(folder)
        tiny.save_blocks(folder)
        named = []
    else:
        place = inputs(folder)
        named = tiny.save_task(folder / "task", run.inputs)
    file = ROOT / "ds_configs" / f"{run.deepspeed}.json"
    flags = [*named, "--report", "false", *run.flags]
    ended = launch(run.processes, place.words(folder / "out", *flags, deepspeed=file))
    assert ended.status == 0, ended.err
    rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text("utf8").splitlines()]
    summary = json.loads((folder / "out" / "summary.json").read_text("utf8"))
    weights = sorted((folder / "out" / "model").glob("*.safetensors"))
    return {
        "losses": [row["loss"] for row in rows],
        "kept_parameters": [row["kept_parameters"] for row in rows],
        "sizes": summary["pruning"]["sizes"],
        "weights": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in weights},
    }


def record() -> None:
    """Run all seven and write their figures."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: figures(run, Path(folder) / name) for name, run in RUNS.items()}
    content = {"platform": platform_name(), "runs": runs}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    sys.exit(record())
