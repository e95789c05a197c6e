"""What the evaluation scripts do with their arguments: load, judge, print, write."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.data import mmlu as questions_of
from apt_ds.eval import loading, mmlu
from apt_ds.eval.resume_file import ResumeFile
from apt_ds.runtime import collectives
from apt_ds.runtime.files import write_json


def run_mmlu(given: argparse.Namespace) -> dict[str, Any]:
    """MMLU of one model: table, JSON, and a progress file while it runs. Collective."""
    check_writable(given.json, given.resume_file)
    loading.start_ranks(bool(given.deepspeed))
    questions = questions_of.load(given.data_dir, given.subjects, given.limit, given.sample, given.seed)
    settings = mmlu.Settings(given.num_shots, given.batch_size, given.max_length, not given.no_prefix_cache)
    mmlu.check_shots(questions, settings.num_shots)
    judged = loading.load(given.model, given.bf16, given.deepspeed, trust=given.trust_remote_code)
    kept = given.resume_file or (f"{given.json}.progress" if given.json else "")
    progress = None
    if kept:
        asked = {"subjects": given.subjects, "limit": given.limit, "sample": given.sample, "seed": given.seed}
        key = asked | settings.answer_key() | {"bf16": given.bf16, "questions": collectives.digest(questions)}
        key["model"] = collectives.on_main(lambda: loading.fingerprint(judged.source))
        progress = ResumeFile(Path(kept), key)
    start = time.perf_counter()
    result = mmlu.evaluate(judged.runner, judged.tokenizer, questions, settings, progress)
    figures = result.figures() | {"seconds": time.perf_counter() - start, "model": given.model}
    publish(figures, mmlu.render(figures), given.json)
    if progress and not given.resume_file:
        progress.remove()
    return figures


def publish(figures: dict[str, Any], table: str, json_path: str) -> None:
    """Print the table and write the figures, on rank 0."""
    if not collectives.is_main():
        return
    print(table, flush=True)
    if json_path:
        write_json(Path(json_path), figures)


def check_writable(*paths: str) -> None:
    """Raise UserError, before hours of work, for a result that would have no folder."""
    for path in filter(None, paths):
        if not Path(path).parent.is_dir():
            raise UserError(f"{path!r} cannot be written: its folder {str(Path(path).parent)!r} is not there")


def run_suite(given: argparse.Namespace) -> dict[str, Any]:
    """Tasks of lm-evaluation-harness: table and JSON. Collective."""
    try:
        from apt_ds.eval import lm_eval_harness
    except ModuleNotFoundError as error:
        raise UserError(f"--suite and --tasks need {error.name}: pip install 'apt_ds[eval]'") from None
    check_writable(given.json)
    if given.suite and given.suite not in lm_eval_harness.SUITES:
        raise UserError(f"--suite {given.suite!r} is not allowed: give one of {', '.join(lm_eval_harness.SUITES)}")
    if given.data_dir and not Path(given.data_dir).is_dir():
        raise UserError(f"--data_dir {given.data_dir!r} is no folder")
    tasks = dict(lm_eval_harness.SUITES[given.suite]) if given.suite else {}
    tasks |= dict.fromkeys(given.tasks, (given.num_fewshot, ""))
    request = lm_eval_harness.Request(tasks, given.data_dir, given.limit, given.batch_size)
    found = lm_eval_harness.run(
        loading.load(given.model, given.bf16, given.deepspeed, trust=given.trust_remote_code), request
    )
    publish({"model": given.model, "tasks": found}, lm_eval_harness.render(found), given.json)
    return found


def run_perplexity(given: argparse.Namespace) -> dict[str, Any]:
    """Perplexity of a corpus: one line and JSON. Collective."""
    from apt_ds.eval import corpus_perplexity

    check_writable(given.json)
    source = corpus_perplexity.Corpus(given.perplexity, given.subset, given.split, given.column)
    loading.start_ranks(bool(given.deepspeed))
    text = source.text()
    judged = loading.load(given.model, given.bf16, given.deepspeed, trust=given.trust_remote_code)
    figures = corpus_perplexity.judge(judged, text, given.block_length, given.bos, given.batch_size, given.perplexity)
    publish(figures | {"model": given.model, "corpus": given.perplexity}, corpus_perplexity.render(figures), given.json)
    return figures


def run_efficiency(given: argparse.Namespace) -> dict[str, Any]:
    """What one or two models cost to run: table and JSON. One process."""
    from apt_ds.eval import inference_cost

    check_writable(given.json)
    if collectives.world_size() > 1 or given.deepspeed:
        raise UserError("--efficiency measures one process: start it with python, without --deepspeed")
    sources = {"model": given.model} | ({"baseline": given.baseline} if given.baseline else {})
    kind = inference_cost.kind_of(sources, given.trust_remote_code)
    sizes = (given.prompt_length, given.new_tokens, given.rounds, given.max_batch, given.inference_batch_size)
    plan = kind.complete(inference_cost.Plan(*sizes))
    found = inference_cost.measure(sources, given.bf16, plan, given.trust_remote_code)
    publish({"plan": asdict(plan), "models": found}, inference_cost.render(found, plan, kind), given.json)
    return found
