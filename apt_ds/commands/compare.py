"""Methods under one budget, one table: `python launchers/compare.py --deepspeed ds_configs/zero2.json --max_steps 100`.

Takes the options of `train.py` for all runs beside its own. Needs the extra [eval].
"""

from __future__ import annotations

import sys
from typing import Any

from apt_ds.config import cli
from apt_ds.config.errors import UserError
from apt_ds.config.methods import METHODS
from apt_ds.config.option_types import READERS
from apt_ds.config.resolve import resolve
from apt_ds.runtime import exit_status

USAGE = "compare.py --deepspeed FILE [--methods A,B] [--sparsity X,Y] [--vary NAME VALUE ...] [--NAME VALUE ...]"


def listed(name: str, text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """The values of a comma-separated list."""
    try:
        return tuple(READERS[kind](word.strip()) for word in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{name} {text!r} is not allowed: give a comma-separated list of {what}") from None


def single(name: str, text: str, kind: type[int] | type[float]) -> Any:
    """The one number of an option that takes no list."""
    one = "one whole number" if kind is int else "one number"
    try:
        return READERS[kind](text.strip())
    except ValueError:
        raise UserError(f"{name} {text!r} is not allowed: give {one}") from None


def parser() -> cli.Parser:
    """The comparison's own options."""
    arguments = cli.Parser(USAGE)
    arguments.epilog = "All other options are those of train.py and go to every run."
    methods = "comma-separated, each with options of its own: apt,apt[repair=ls]. pruning: all that prune"
    arguments.add_argument("--methods", default=",".join(METHODS), help=f"{methods}; default: all")
    arguments.add_argument("--sparsity", default="0.3,0.5", help="removed fractions, comma-separated; default 0.3,0.5")
    arguments.add_argument("--seeds", default="128", help="comma-separated; a row of the table is their mean")
    vary = "an option of train.py and the values to try; may be given again: all combinations are run"
    arguments.add_argument("--vary", nargs="*", action="append", default=[], metavar=("NAME", "VALUE"), help=vary)
    arguments.add_argument("--processes", default="1", help="of each run; default 1")
    arguments.add_argument("--full_learning_rate", default="1e-5", help="of full fine-tuning; default 1e-5")
    epochs = "of full fine-tuning, instead of --max_steps too; the paper's 10; default 0: as long as the other runs"
    arguments.add_argument("--full_num_train_epochs", default="0", help=epochs)
    arguments.add_argument("--mmlu_data", default="", help="a folder of MMLU's CSV files; empty: no MMLU")
    arguments.add_argument("--mmlu_sample", default="1000", help="questions to ask; 0: all; default 1000")
    local = "a folder of data for the suite local of evaluate.py; empty: it is not run"
    arguments.add_argument("--local_suite", default="", metavar="DATA", help=local)
    arguments.add_argument("--local_limit", default="200", help="questions of each of its tasks; 0: all; default 200")
    arguments.add_argument("--efficiency", action="store_true", help="measure inference, all models in turn")
    ended = "make the table of the runs that have ended, and start none"
    arguments.add_argument("--finished_only", action="store_true", help=ended)
    batch = "sequences per pass of --efficiency. Language models run at batch 1 too (the paper: 32 for 7B, 4 for 13B)"
    arguments.add_argument(
        "--inference_batch_size", default="0", help=f"{batch} and default to that alone. Others: 128"
    )
    return arguments


def main() -> None:
    """Compare as the command line says. Raises UserError."""
    arguments = parser()
    own, rest = arguments.parse_known_args(sys.argv[1:])
    from apt_ds.analysis.compare import Comparison, compare
    from apt_ds.analysis.variants import parse_variants

    comparison = Comparison(
        parse_variants(own.methods),
        listed("--sparsity", own.sparsity, float),
        listed("--seeds", own.seeds, int),
        single("--processes", own.processes, int),
        single("--full_learning_rate", own.full_learning_rate, float),
        own.mmlu_data,
        single("--mmlu_sample", own.mmlu_sample, int),
        own.efficiency,
        tuple(map(tuple, own.vary)),
        single("--full_num_train_epochs", own.full_num_train_epochs, float),
        single("--inference_batch_size", own.inference_batch_size, int),
        own.local_suite,
        single("--local_limit", own.local_limit, int),
        own.finished_only,
    )
    comparison.check()
    resolve(rest, arguments.names())
    compare(comparison, rest)


def script() -> None:
    """Entry point: `main`, then end the process with its exit status."""
    exit_status.main(main)


if __name__ == "__main__":
    script()
