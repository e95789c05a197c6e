"""The evaluation script in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support import multiprocess, tiny
from tests.support.paths import ROOT

TEXT = " ".join(tiny.WORDS[(5 * i) % len(tiny.WORDS)] for i in range(230))


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(ROOT / "launchers" / "evaluate.py"), "--model", str(folder / "dense"), *words]
    return subprocess.run(
        call, env=multiprocess.environment(), capture_output=True, text=True, timeout=200, check=False
    )
