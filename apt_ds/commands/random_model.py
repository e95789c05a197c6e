"""A model folder of random weights in a published shape: `python launchers/random_model.py FOLDER --shape llama2-7b`.

It stands in for weights that cannot be downloaded: memory, time and files are those of the published model.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apt_ds.config import cli
from apt_ds.config.cli import at_least
from apt_ds.config.paths import check_path
from apt_ds.runtime import exit_status

USAGE = "random_model.py FOLDER --shape NAME [--dtype bfloat16] [--layers N] [--tokenizer builtin]"
DTYPES = ("bfloat16", "float16", "float32")


def parser() -> cli.Parser:
    """The options of the script."""
    arguments = cli.Parser(USAGE)
    arguments.add_argument("folder", help="a new folder for the model")
    arguments.add_argument(
        "--shape", required=True, help="llama2-7b, llama3-8b and others, or the path of a config.json"
    )
    arguments.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of the weights; default {DTYPES[0]}")
    arguments.add_argument("--layers", type=at_least(1), default=0, help="number of layers; default: the shape's own")
    tokenizer = "builtin (trained on the builtin instructions), builtin:smollm2, or a folder; default builtin"
    arguments.add_argument("--tokenizer", default="builtin", help=tokenizer)
    return arguments


def main() -> None:
    """Write the model that the command line asks for. Raises UserError."""
    own = parser().read(sys.argv[1:])
    for flag, path in (("FOLDER", own.folder), ("--shape", own.shape), ("--tokenizer", own.tokenizer)):
        check_path(flag, path, f"give {flag} a shorter path")
    # torch takes seconds to import: a wrong flag should not wait for it
    import torch

    from apt_ds.analysis.bench.random_folder import write_random_model

    size = write_random_model(Path(own.folder), own.shape, getattr(torch, own.dtype), own.layers, own.tokenizer)
    print(f"{own.folder}: {size / 1e9:.2f} GB of random weights in the shape of {own.shape}")


def script() -> None:
    """Entry point: `main`, then end the process with its exit status."""
    exit_status.main(main)


if __name__ == "__main__":
    script()
