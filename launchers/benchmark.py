"""Step time and memory against PEFT's LoRA: `deepspeed launchers/benchmark.py --deepspeed ds_configs/zero3.json`.

Takes the options of `train.py`, and --rounds, --steps, --json. Needs the extra [dev] (peft).
"""

from __future__ import annotations

import argparse
import sys

from apt_ds import command
from apt_ds.config import UserError, resolve


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", default="")
    own, rest = parser.parse_known_args(sys.argv[1:])
    if own.rounds < 1 or own.steps < 1:
        raise UserError("--rounds and --steps must be at least 1")
    run = resolve(rest)
    try:
        from apt_ds.benchmark import benchmark
    except ModuleNotFoundError as error:
        raise UserError(f"the benchmark needs {error.name}: pip install 'apt_ds[dev]'") from None

    benchmark(run, own.rounds, own.steps, own.json)


if __name__ == "__main__":
    command.main(main)
