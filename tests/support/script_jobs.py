"""A job of `multiprocess.py`: what a launcher script does on every rank."""

from __future__ import annotations

import importlib
import os
import sys

from tests.support.paths import ROOT


def script(script: str, words: list[str]) -> None:
    """Do what `launchers/<script>.py` does with these words, after the one that the deepspeed launcher adds.

    Paths in them may be those of the repository.
    """
    os.chdir(ROOT)
    sys.argv = [f"launchers/{script}.py", f"--local_rank={os.environ['LOCAL_RANK']}", *words]
    importlib.import_module(f"apt_ds.commands.{script}").main()
