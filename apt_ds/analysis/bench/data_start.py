"""What reading and tokenizing costs at the start of a run, without the model: `benchmark.py --data`.

Each start is a process of its own. The data set is one of `train.py`, repeated with a number in each text, so that no
cache of strings helps. Instruction records only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

import psutil
import torch

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.data.conversations import load_examples
from apt_ds.data.special_tokens import resolve_pad_id
from apt_ds.models import loading
from apt_ds.training.datasets import read_data
from apt_ds.training.micro_batches import MicroBatches

FEW = 100  # rows of the start to compare with
NOW = datetime(2024, 1, 1)  # a second start on another day reads the cache of a template that writes the date
NAMES = {"few": f"start with {FEW} rows", "first": "first start", "second": "second start"}


def measure(argv: Sequence[str], rows: int) -> dict[str, dict[str, float]]:
    """Figures of three starts: with few rows, and twice with `rows` rows.

    Args:
        argv: options of `train.py`. --data_path names the records to repeat.
        rows: rows of the data set.

    Raises:
        UserError: a record is no instruction, or a start fails.
    """
    run = resolve(list(argv))
    with tempfile.TemporaryDirectory(prefix="apt_ds_data_") as name:
        folder = Path(name)
        few, many = folder / "few.jsonl", folder / "many.jsonl"
        write_rows(run.data.data_path, few, FEW)
        write_rows(run.data.data_path, many, rows)
        return {
            "few": _start(argv, few, folder / "cache"),
            "first": _start(argv, many, folder / "cache"),
            "second": _start(argv, many, folder / "cache"),
        }


def write_rows(data_path: str, path: Path, rows: int) -> None:
    """A file of `rows` instruction records, those of `data_path` again and again with their number."""
    examples = [example for example in load_examples(data_path) if example.instruction]
    if not examples:
        raise UserError(f"--data: {data_path} has no instruction records to repeat")
    numbered = ((number, examples[number % len(examples)]) for number in count())
    with path.open("w", encoding="utf-8") as file:
        for number, example in islice(numbered, rows):
            record = {"instruction": f"{example.instruction} ({number})", "input": example.input}
            file.write(json.dumps(record | {"output": f"{example.output} [{number}]"}, ensure_ascii=False) + "\n")


def _start(argv: Sequence[str], path: Path, cache: Path) -> dict[str, float]:
    """The figures of one process."""
    command = [sys.executable, "-m", "apt_ds.analysis.bench.data_start", *argv]
    command += ["--data_path", str(path), "--data_cache_dir", str(cache), "--eval_size", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"--data: a start failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def start(argv: Sequence[str]) -> dict[str, float]:
    """Read the data as a run does, up to its first batch.

    Returns:
        rows, seconds to the first batch, seconds of processor time (`cpu`), and bytes by which memory grows: `resident`
        and, of those, `private`, which no file backs.
    """
    run = resolve(list(argv))
    loading.quiet_transformers()
    base = loading.find_base(run.model.model_name_or_path)
    before, used, began = memory(), cpu_seconds(), time.perf_counter()
    data = read_data(run, base, NOW)
    batches = MicroBatches(run, data.train, data.order, resolve_pad_id(base.tokenizer), torch.device("cpu"))
    batches.on_host(0, 0)
    seconds, after = time.perf_counter() - began, memory()
    figures = {"rows": float(len(data.train) + len(data.held_out)), "seconds": seconds, "cpu": cpu_seconds() - used}
    return figures | {name: after[name] - before[name] for name in after}


def cpu_seconds() -> float:
    """Seconds of processor time of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])


def memory() -> dict[str, float]:
    """Bytes of this process: resident, and private."""
    used = psutil.Process().memory_full_info()
    return {"resident": float(used.rss), "private": float(used.uss)}


def render(figures: dict[str, dict[str, float]]) -> str:
    """A table in Markdown: rows a second, megabytes a rank and seconds to the first batch."""
    load = os.getloadavg()[0]
    lines = [
        f"{os.cpu_count()} processors, load {load:.1f} at the end",
        "",
        "| | rows | s to the first batch | rows/s | CPU s | MB a rank | of those private |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, start in figures.items():
        shown: list[Any] = [NAMES[name], f"{start['rows']:,.0f}", f"{start['seconds']:.2f}"]
        shown += [f"{start['rows'] / start['seconds']:,.0f}", f"{start['cpu']:.2f}"]
        shown += [f"{start[part] / 1e6:,.0f}" for part in ("resident", "private")]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(start(sys.argv[1:])))
