"""The commands of the evaluation scripts: load a model, evaluate it, print and write the figures."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.config.paths import shortened
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data import choice_questions
from apt_ds.data import mmlu as mmlu_data
from apt_ds.data.conversations import load_examples
from apt_ds.data.rewritten import json_lines
from apt_ds.data.source_kind import is_plain_text
from apt_ds.eval import loading, mmlu, rewriting
from apt_ds.eval.generated_answers import GenerationOptions
from apt_ds.eval.resume_file import ResumeFile
from apt_ds.runtime import collectives, notices
from apt_ds.runtime.files import check_writable, write_json, write_text

LOCAL = "local"  # the suite that needs no lm-evaluation-harness


def run_mmlu(args: argparse.Namespace) -> dict[str, Any]:
    """MMLU of one model. Writes a table, JSON, and a resume file while it runs. Collective."""
    check_writable(args.json, args.resume_file)
    loading.start_ranks(bool(args.deepspeed))
    questions = mmlu_data.load(args.data_dir, args.subjects, args.limit, args.sample, args.seed)
    settings = mmlu.Settings(args.num_shots, args.batch_size, args.max_length, not args.no_prefix_cache)
    mmlu.check_shots(questions, settings.num_shots)
    loaded = loading.load(args.model, args.bf16, args.deepspeed, trust=args.trust_remote_code)
    path = args.resume_file or (f"{args.json}.progress" if args.json else "")
    resume_file = None
    if path:
        selection = {"subjects": args.subjects, "limit": args.limit, "sample": args.sample, "seed": args.seed}
        key = selection | settings.answer_key() | {"bf16": args.bf16, "questions": collectives.digest(questions)}
        key["model"] = collectives.on_main(lambda: loading.fingerprint(loaded.source))
        resume_file = ResumeFile(Path(path), key)
    start = time.perf_counter()
    result = mmlu.evaluate(loaded.runner, loaded.tokenizer, questions, settings, resume_file)
    figures = result.figures() | {"seconds": time.perf_counter() - start, "model": args.model}
    figures["questions"] = collectives.digest(questions)
    publish(figures, mmlu.render(figures), args.json)
    if resume_file and not args.resume_file:
        resume_file.remove()
    return figures


def publish(figures: dict[str, Any], table: str, json_path: str) -> None:
    """Print the table and write the figures, on rank 0."""
    if not collectives.is_main():
        return
    print(table, flush=True)
    if json_path:
        write_json(Path(json_path), figures)


def run_local_suite(args: argparse.Namespace) -> dict[str, Any]:
    """The suite `local`. Writes a table and JSON. Collective."""
    from apt_ds.eval import local_suite

    check_writable(args.json)
    if args.tasks or args.num_fewshot is not None:
        raise UserError(f"--suite {LOCAL} has tasks and shots of its own: leave --tasks and --num_fewshot out")
    if not args.data_dir:
        raise UserError(f"--suite {LOCAL} requires --data_dir: a folder with sst2/, plain/ and wikitext2/")
    loading.start_ranks(bool(args.deepspeed))
    tasks = collectives.on_main(lambda: choice_questions.load(args.data_dir, args.limit))
    loaded = loading.load(args.model, args.bf16, args.deepspeed, trust=args.trust_remote_code)
    start = time.perf_counter()
    results = local_suite.evaluate(loaded, tasks, args.batch_size)
    figures = {"model": args.model, "limit": args.limit, "questions": collectives.digest(tasks), "bf16": args.bf16}
    figures |= {"seconds": time.perf_counter() - start, "tasks": results}
    publish(figures, local_suite.render(results), args.json)
    return figures


def run_suite(args: argparse.Namespace) -> dict[str, Any]:
    """Tasks of lm-evaluation-harness. Writes a table and JSON. Collective."""
    if args.suite == LOCAL:
        return run_local_suite(args)
    try:
        from apt_ds.eval import lm_eval_harness
    except ModuleNotFoundError as error:
        raise UserError(f"--suite and --tasks need {error.name}: pip install 'apt_ds[eval]'") from None
    check_writable(args.json)
    if args.suite and args.suite not in lm_eval_harness.SUITES:
        names = ", ".join([*lm_eval_harness.SUITES, LOCAL])
        raise UserError(f"--suite {args.suite!r} is not allowed: give one of {names}")
    if args.data_dir and not os.path.isdir(args.data_dir):
        raise UserError(f"--data_dir {shortened(args.data_dir)!r} is not a folder")
    tasks = dict(lm_eval_harness.SUITES[args.suite]) if args.suite else {}
    tasks |= dict.fromkeys(args.tasks, (args.num_fewshot, ""))
    request = lm_eval_harness.Request(tasks, args.data_dir, args.limit, args.batch_size)
    loaded = loading.load(args.model, args.bf16, args.deepspeed, trust=args.trust_remote_code)
    results = lm_eval_harness.run(loaded, request)
    publish({"model": args.model, "tasks": results}, lm_eval_harness.render(results), args.json)
    return results


def run_perplexity(args: argparse.Namespace) -> dict[str, Any]:
    """Perplexity of a corpus. Writes one line and JSON. Collective."""
    from apt_ds.eval import corpus_perplexity

    check_writable(args.json)
    corpus = corpus_perplexity.Corpus(args.perplexity, args.subset, args.split, args.column)
    if corpus.is_file() and (ignored := [name for name in ("subset", "split", "column") if name in args.stated]):
        raise UserError(f"--{ignored[0]} requires a data set: --perplexity {args.perplexity!r} is a text file")
    loading.start_ranks(bool(args.deepspeed))
    text = corpus.text()
    loaded = loading.load(args.model, args.bf16, args.deepspeed, trust=args.trust_remote_code)
    figures = corpus_perplexity.evaluate(loaded, text, args.block_length, args.bos, args.batch_size, args.perplexity)
    publish(figures | {"model": args.model, "corpus": args.perplexity}, corpus_perplexity.render(figures), args.json)
    return figures


def run_efficiency(args: argparse.Namespace) -> dict[str, Any]:
    """What one or two models cost to run. Writes a table and JSON. One process."""
    from apt_ds.eval import inference_cost

    check_writable(args.json)
    if collectives.world_size() > 1 or args.deepspeed:
        raise UserError("--efficiency measures one process: start it with python, without --deepspeed")
    sources = {"model": args.model} | ({"baseline": args.baseline} if args.baseline else {})
    protocol = inference_cost.protocol_of(sources, args.trust_remote_code)
    sizes = (args.prompt_length, args.new_tokens, args.rounds, args.max_batch, args.inference_batch_size)
    plan = protocol.complete(inference_cost.TimingPlan(*sizes))
    figures = inference_cost.measure(sources, args.bf16, plan, args.trust_remote_code)
    publish({"plan": asdict(plan), "models": figures}, inference_cost.render(figures, plan, protocol), args.json)
    return figures


def run_rewrite(args: argparse.Namespace) -> dict[str, Any]:
    """Rewrite the last answers of a data set by a model. Writes JSON lines. Collective.

    Raises:
        UserError: a mistake in the options, the model or the data, or every new answer is empty.
    """
    check_writable(args.output)
    loading.start_ranks(bool(args.deepspeed))
    if not collectives.is_main():
        # rank 0 warns of the same files
        logging.getLogger("apt_ds.data").setLevel(logging.ERROR)
    if is_plain_text(args.data_path):
        raise UserError(f"--data_path {args.data_path!r} holds plain text, which has no answers: give conversations")
    examples = load_examples(args.data_path)[: args.limit or None]
    loaded = loading.load(args.model, args.bf16, args.deepspeed, trust=args.trust_remote_code)
    if loading.task_type_of(loaded.model.config) != LANGUAGE_MODEL:
        raise UserError(f"--model {args.model!r} is not a language model: only language models write answers")
    context = getattr(loaded.model.config, "max_position_embeddings", None) or args.max_seq_length
    if args.max_seq_length > context:
        raise UserError(
            f"--max_seq_length {args.max_seq_length} is longer than the model's context of {context} tokens"
        )
    options = GenerationOptions(args.max_new_tokens, args.temperature, args.seed, args.per_device_eval_batch_size)
    now = collectives.on_main(datetime.now)
    plan = rewriting.plan_of(examples, loaded.tokenizer, args.max_seq_length, options, now)
    if collectives.is_main():
        print(plan.describe(options), file=sys.stderr, flush=True)
    rewritten, figures = rewriting.rewrite(loaded.runner, loaded.tokenizer, plan, options)
    if not rewritten:
        raise UserError(f"--model {args.model!r} gives no text to any prompt: give another model")
    collectives.on_main(lambda: write_text(Path(args.output), json_lines(rewritten)))
    if collectives.is_main():
        template = bool(loaded.tokenizer.chat_template)
        if warning := figures.warning("--max_new_tokens and --max_seq_length", template):
            notices.warn(warning)
        print(f"{args.output}: {figures.describe()}", flush=True)
    return asdict(figures)
