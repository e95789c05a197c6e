"""What the evaluation scripts do with their arguments: load, judge, print, write."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from apt_ds import dist
from apt_ds.config import UserError
from apt_ds.data import mmlu as questions_of
from apt_ds.eval import loading, mmlu
from apt_ds.eval.progress import Progress
from apt_ds.journal import write_json


def run_mmlu(given: argparse.Namespace) -> dict[str, Any]:
    """MMLU of one model: table, JSON, and a progress file while it runs. Collective."""
    check_writable(given.json, given.resume_file)
    loading.start_ranks(bool(given.deepspeed))
    questions = questions_of.load(given.data_dir, given.subjects, given.limit, given.sample, given.seed)
    settings = mmlu.Settings(given.num_shots, given.batch_size, given.max_length, not given.no_prefix_cache)
    mmlu.check_shots(questions, settings.num_shots)
    judged = loading.load(given.model, given.bf16, given.deepspeed)
    kept = given.resume_file or (f"{given.json}.progress" if given.json else "")
    progress = None
    if kept:
        asked = {"subjects": given.subjects, "limit": given.limit, "sample": given.sample, "seed": given.seed}
        key = asked | settings.answer_key() | {"bf16": given.bf16, "questions": dist.digest(questions)}
        key["model"] = dist.on_main(lambda: loading.fingerprint(judged.source))
        progress = Progress(Path(kept), key)
    start = time.perf_counter()
    result = mmlu.evaluate(judged.runner, judged.tokenizer, questions, settings, progress)
    figures = result.figures() | {"seconds": time.perf_counter() - start, "model": given.model}
    publish(figures, mmlu.render(figures), given.json)
    if progress and not given.resume_file:
        progress.remove()
    return figures


def publish(figures: dict[str, Any], table: str, json_path: str) -> None:
    """Print the table and write the figures, on rank 0."""
    if not dist.is_main():
        return
    print(table, flush=True)
    if json_path:
        write_json(Path(json_path), figures)


def check_writable(*paths: str) -> None:
    """Raise UserError, before hours of work, for a result that would have no folder."""
    for path in filter(None, paths):
        if not Path(path).parent.is_dir():
            raise UserError(f"{path!r} cannot be written: its folder {str(Path(path).parent)!r} is not there")
