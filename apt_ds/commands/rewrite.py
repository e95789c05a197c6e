"""A data set with the answers of a model: `python -m apt_ds.commands.rewrite --model M --data_path D --output A.jsonl`.

The model writes the last answer of each conversation. Training on the dense model's own answers keeps more of its
quality after a cut than training on the answers of others. `train.py --rewrite_answers` does the same before it trains.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from apt_ds.config import cli
from apt_ds.config.errors import UserError
from apt_ds.config.option_types import decimal
from apt_ds.config.paths import check_path
from apt_ds.config.run_config import OPTIONS
from apt_ds.runtime import exit_status

USAGE = "python -m apt_ds.commands.rewrite --model_name_or_path M --data_path D --output FILE.jsonl [--NAME VALUE ...]"
TEMPERATURES = OPTIONS["rewrite_temperature"].metadata["allowed"]


def parser() -> cli.Parser:
    """The options of the command."""
    arguments = cli.Parser(USAGE)
    count, number = cli.at_least(1), cli.at_least(0)
    model = "a folder, a hub name or builtin:smollm2"
    arguments.add_argument("--model_name_or_path", "--model", dest="model", required=True, help=model)
    data = "conversations: a file, a folder, a hub name or builtin:instructions"
    arguments.add_argument("--data_path", required=True, help=data)
    output = "a new file .jsonl. Each line has the last answer by the model. Earlier answers are context (weight 0)"
    arguments.add_argument("--output", required=True, help=output)
    most = "tokens of an answer; default 256. A longer one is cut: it gets finish_reason length and no end of turn"
    arguments.add_argument("--max_new_tokens", type=count, default=256, help=most)
    length = "tokens of prompt and answer together, as in training; default 512"
    arguments.add_argument("--max_seq_length", type=cli.at_least(2), default=512, help=length)
    batch = "prompts per device and batch; default 8"
    arguments.add_argument("--per_device_eval_batch_size", type=count, default=8, metavar="N", help=batch)
    temperature = f"0: the most probable token each time, above 0: sampling; {TEMPERATURES}; default 0"
    arguments.add_argument("--temperature", type=_temperature, default=0.0, help=temperature)
    arguments.add_argument("--seed", type=number, default=128, help="of sampling; default 128")
    arguments.add_argument("--limit", type=number, default=0, help="first examples to rewrite; 0: all")
    arguments.add_argument("--bf16", action="store_true", help="compute in bfloat16 instead of float32")
    arguments.add_argument("--trust_remote_code", action="store_true", help="run code of the model's folder")
    arguments.add_argument(
        "--deepspeed", default="", help="a DeepSpeed JSON; with ZeRO-3 weights are sharded over ranks"
    )
    return arguments


def _temperature(text: str) -> float:
    """The type of an argument: a temperature."""
    with suppress(ValueError):
        if TEMPERATURES.holds(value := decimal(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give {TEMPERATURES}")


def main() -> None:
    """Rewrite as the command line says. Raises UserError."""
    rewrite(parser().read(sys.argv[1:]))


def rewrite(given: argparse.Namespace) -> dict[str, Any]:
    """Write the file that the options ask for, and return the figures. Collective.

    Raises:
        UserError: a mistake in the options, the model or the data.
    """
    output = Path(given.output)
    if output.suffix != ".jsonl":
        raise UserError(f"--output {given.output!r} is not allowed: give a name that ends in .jsonl")
    check_path("--output", given.output, "give a shorter name")
    if output.exists():
        raise UserError(f"--output {given.output!r} exists already: give another file, or remove it")
    # torch takes seconds to import: a wrong flag should not wait for it
    from apt_ds.eval import commands

    return commands.run_rewrite(given)


def script() -> None:
    """Entry point: `main`, then end the process with its exit status."""
    exit_status.main(main)


if __name__ == "__main__":
    script()
