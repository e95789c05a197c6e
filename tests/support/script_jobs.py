"""A job of `multiprocess.py` that runs a launcher script on every rank."""

from __future__ import annotations

import importlib
import os
import sys

from tests.support.paths import ROOT


def script(script: str, words: list[str]) -> None:
    """Run `launchers/<script>.py` with these words, after the word that the deepspeed launcher adds.

    Paths among the words may be relative to the repository.
    """
    os.chdir(ROOT)
    sys.argv = [f"launchers/{script}.py", f"--local_rank={os.environ['LOCAL_RANK']}", *words]
    importlib.import_module(f"apt_ds.commands.{script}").main()
