"""Evaluate a finished model: `python launchers/evaluate.py --model out/model --suite open-llm`.

One of --suite or --tasks (lm-evaluation-harness), --perplexity, --efficiency.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from apt_ds.config import cli
from apt_ds.config.errors import UserError
from apt_ds.runtime import exit_status

USAGE = "evaluate.py --model DIR (--suite NAME | --tasks A,B | --perplexity FILE | --efficiency) [--NAME VALUE ...]"

# options of one evaluation, by the options that choose it
OPTIONS_OF = {
    "--suite or --tasks": ("limit", "data_dir"),
    "--tasks": ("num_fewshot",),
    "--perplexity": ("subset", "split", "column", "block_length", "bos"),
    "--efficiency": ("baseline", "prompt_length", "inference_batch_size", "new_tokens", "rounds", "max_batch"),
}


def parser() -> cli.Parser:
    """The options of the command."""
    arguments = cli.Parser(USAGE)
    count, number = cli.at_least(1), cli.at_least(0)
    arguments.add_argument("--model", required=True, help="a folder, a hub name, builtin:smollm2 or builtin:minilm")
    arguments.add_argument("--bf16", action="store_true", help="compute in bfloat16 instead of float32")
    arguments.add_argument("--trust_remote_code", action="store_true", help="run code of the model's folder")
    arguments.add_argument(
        "--deepspeed", default="", help="a DeepSpeed JSON; with ZeRO-3 weights are sharded over ranks"
    )
    arguments.add_argument("--batch_size", type=count, default=8, help="sequences per device and pass; default 8")
    arguments.add_argument("--json", default="", help="a file for the figures")
    suite = arguments.add_argument_group("tasks, of lm-evaluation-harness but for the suite local")
    open_llm, local = "ARC 25, HellaSwag 10, MMLU 5, TruthfulQA mc2 0 shots", "tasks for small models from --data_dir"
    suite.add_argument("--suite", default="", help=f"open-llm: {open_llm}. local: {local}")
    suite.add_argument("--tasks", type=cli.split_commas, default=[], help="comma-separated names of any of its tasks")
    suite.add_argument("--num_fewshot", type=number, default=None, help="shots of --tasks; default: as the task says")
    suite.add_argument("--limit", type=number, default=0, help="questions per task (MMLU: per subject); 0: all")
    suite.add_argument(
        "--data_dir", default="", help="folder of data sets: mmlu (CSV), ai2_arc/ARC-Challenge, sst2, ..."
    )
    corpus = arguments.add_argument_group("perplexity")
    corpus.add_argument("--perplexity", default="", help="a text file, or a data set with --subset --split --column")
    corpus.add_argument("--subset", default="", help="configuration of the data set")
    corpus.add_argument("--split", default="test", help="its split; default test")
    corpus.add_argument("--column", default="text", help="its column of text; default text")
    corpus.add_argument("--block_length", type=cli.at_least(2), default=1024, help="tokens; default 1024")
    corpus.add_argument("--bos", action="store_true", help="begin each block with BOS, which counts in its length")
    cost = arguments.add_argument_group("efficiency")
    cost.add_argument("--efficiency", action="store_true", help="latency, throughput, memory, FLOPs and size")
    cost.add_argument("--baseline", default="", help="a second model, measured in turn with the first")
    cost.add_argument("--prompt_length", type=count, default=0, help="tokens; default 256, with an encoder 128")
    batch = "sequences per pass. Language models run at batch 1 too and default to that alone. Others default to 128"
    cost.add_argument("--inference_batch_size", type=count, default=0, metavar="N", help=batch)
    cost.add_argument("--new_tokens", type=count, default=32, help="tokens decoded; default 32")
    cost.add_argument("--rounds", type=count, default=5, help="measurements per model; default 5")
    cost.add_argument("--max_batch", type=number, default=16, help="end of the search; 0: until memory ends")
    return arguments


def main() -> None:
    """Evaluate as the command line says. Raises UserError."""
    evaluate(parser().read(sys.argv[1:]))


def evaluate(given: argparse.Namespace) -> dict[str, Any]:
    """Run the one evaluation that the options ask for, and return its figures. Collective.

    Raises:
        UserError: a mistake in the options, the model or the data.
    """
    wanted = {"suite": given.suite or given.tasks, "perplexity": given.perplexity, "efficiency": given.efficiency}
    chosen = [name for name, value in wanted.items() if value]
    if len(chosen) != 1:
        raise UserError("give one of --suite or --tasks, --perplexity, --efficiency")
    check_stated(given)
    # torch takes seconds to import: a wrong flag should not wait for it
    from apt_ds.eval import commands

    if chosen[0] == "suite":
        return commands.run_suite(given)
    return commands.run_perplexity(given) if chosen[0] == "perplexity" else commands.run_efficiency(given)


def check_stated(given: argparse.Namespace) -> None:
    """Raise UserError for an option that the chosen evaluation would ignore."""
    if given.efficiency and "batch_size" in given.stated:
        raise UserError("--efficiency ignores --batch_size: give --inference_batch_size")
    # the suite `local` says itself that it has shots of its own
    own_shots = {"num_fewshot"} if given.suite == "local" else set[str]()
    for choosers, names in OPTIONS_OF.items():
        chosen = any(getattr(given, word[2:]) for word in choosers.split(" or "))
        if not chosen and (ignored := [name for name in names if name in given.stated - own_shots]):
            raise UserError(f"--{ignored[0]} requires {choosers}")


def script() -> None:
    """Entry point: `main`, then end the process with its exit status."""
    exit_status.main(main)


if __name__ == "__main__":
    script()
