"""Methods under one budget, one table: `python launchers/compare.py --deepspeed ds_configs/zero2.json --max_steps 100`.

Takes the options of `train.py` for all runs, and its own: --methods, --sparsity (a list here), --seeds, --processes,
--full_learning_rate, --mmlu_data, --mmlu_sample, --efficiency. Needs the extra [eval].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from apt_ds import command
from apt_ds.config import UserError
from apt_ds.presets import METHODS


def listed(name: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The values of a comma-separated list."""
    try:
        return tuple(kind(word.strip()) for word in text.split(","))
    except ValueError:
        raise UserError(f"{name} {text!r} is not allowed: give a comma-separated list of numbers") from None


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--sparsity", default="0.3,0.5")
    parser.add_argument("--seeds", default="128")
    parser.add_argument("--processes", default="1")
    parser.add_argument("--full_learning_rate", default="1e-5")
    parser.add_argument("--mmlu_data", default="")
    parser.add_argument("--mmlu_sample", default="1000")
    parser.add_argument("--efficiency", action="store_true")
    own, rest = parser.parse_known_args(sys.argv[1:])
    from apt_ds.compare import Comparison, compare

    comparison = Comparison(
        listed("--methods", own.methods, str),
        listed("--sparsity", own.sparsity, float),
        listed("--seeds", own.seeds, int),
        listed("--processes", own.processes, int)[0],
        listed("--full_learning_rate", own.full_learning_rate, float)[0],
        own.mmlu_data,
        listed("--mmlu_sample", own.mmlu_sample, int)[0],
        own.efficiency,
    )
    compare(comparison, rest)


if __name__ == "__main__":
    command.main(main)
