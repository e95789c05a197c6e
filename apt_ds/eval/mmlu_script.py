"""The script `launchers/eval_mmlu.py`: its options and what it runs."""

from __future__ import annotations

import sys

from apt_ds.config import cli
from apt_ds.runtime import exit_status

USAGE = "eval_mmlu.py --model DIR [--data_dir DIR] [--json FILE] [--NAME VALUE ...]"


def parser() -> cli.Parser:
    made = cli.Parser(USAGE)
    count, number = cli.at_least(1), cli.at_least(0)
    made.add_argument("--model", required=True, help="a folder, a hub name, or builtin:smollm2")
    made.add_argument("--data_dir", default="", help="folder with dev/ and test/ of CSV files; empty: cais/mmlu")
    made.add_argument("--subjects", type=cli.split_commas, default=[], help="comma-separated; empty: all 57")
    made.add_argument("--limit", type=number, default=0, help="questions per subject; 0: all")
    made.add_argument("--sample", type=number, default=0, help="questions drawn over all subjects; 0: all")
    made.add_argument("--seed", type=number, default=0, help="seed of --sample")
    made.add_argument("--num_shots", type=number, default=5, help="solved examples before a question; default 5")
    made.add_argument("--max_length", type=number, default=0, help="tokens of a prompt; 0: the model's context")
    made.add_argument("--batch_size", type=count, default=8, help="questions per device and pass; default 8")
    made.add_argument("--bf16", action="store_true", help="bfloat16 instead of float32; near-ties then fall by chance")
    made.add_argument("--trust_remote_code", action="store_true", help="run code of the model's folder")
    made.add_argument("--deepspeed", default="", help="a DeepSpeed JSON; with ZeRO-3 weights are sharded over ranks")
    made.add_argument("--no_prefix_cache", action="store_true", help="run every prompt whole: slower, to compare")
    made.add_argument("--json", default="", help="a file for the figures")
    made.add_argument("--resume_file", default="", help="where answers are kept meanwhile; default: next to --json")
    return made


def main() -> None:
    given = parser().read(sys.argv[1:])
    # torch takes seconds to import: a wrong flag should not
    from apt_ds.eval.commands import run_mmlu

    run_mmlu(given)


if __name__ == "__main__":
    exit_status.main(main)
