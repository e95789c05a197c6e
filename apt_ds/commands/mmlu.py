"""MMLU of a finished model: `deepspeed launchers/eval_mmlu.py --model out/model`, or `apt-ds-mmlu` for one process."""

from __future__ import annotations

import sys

from apt_ds.config import cli
from apt_ds.runtime import exit_status

USAGE = "eval_mmlu.py --model DIR [--data_dir DIR] [--json FILE] [--NAME VALUE ...]"


def parser() -> cli.Parser:
    """The options of the command."""
    result = cli.Parser(USAGE)
    positive, not_negative = cli.at_least(1), cli.at_least(0)

    def flag(name: str, help_text: str) -> None:
        result.add_argument(name, action="store_true", help=help_text)

    def text(name: str, help_text: str) -> None:
        result.add_argument(name, default="", help=help_text)

    result.add_argument("--model", required=True, help="a folder, a hub name, or builtin:smollm2")
    text("--data_dir", "folder of CSV files, with dev/ and test/; default: cais/mmlu of the hub")
    result.add_argument(
        "--subjects", type=cli.split_commas, default=[], help="comma-separated subjects; default all 57"
    )
    result.add_argument("--limit", type=not_negative, default=0, help="questions per subject; 0: all")
    result.add_argument("--sample", type=not_negative, default=0, help="random questions over all subjects; 0: all")
    result.add_argument("--seed", type=not_negative, default=0, help="seed of --sample")
    result.add_argument("--num_shots", type=not_negative, default=5, help="solved examples per question; default 5")
    result.add_argument("--max_length", type=not_negative, default=0, help="tokens per prompt; 0: the model's context")
    result.add_argument("--batch_size", type=positive, default=8, help="questions per device and pass; default 8")
    flag("--bf16", "bfloat16 instead of float32. Rounding then decides near-ties")
    flag("--trust_remote_code", "allow code of the model's folder to run")
    text("--deepspeed", "a DeepSpeed JSON. ZeRO-3 shards the weights over ranks")
    flag("--no_prefix_cache", "run the shots again for every question: slower, for comparison")
    text("--json", "file for the figures")
    text("--resume_file", "file that stores answers while the evaluation runs; default: next to --json")
    return result


def main() -> None:
    """Evaluate as the command line says. Raises UserError."""
    args = parser().read(sys.argv[1:])
    # torch takes seconds to import: a wrong flag must not wait for it
    from apt_ds.eval.commands import run_mmlu

    run_mmlu(args)


def script() -> None:
    """Entry point: `main`, then end the process with its exit status."""
    exit_status.main(main)


if __name__ == "__main__":
    script()
