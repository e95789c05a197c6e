"""An environment with transformers 4, made once, and the answers of a script that runs in it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest
import torch

VERSION = "4.57.6"
PLACE = "APT_DS_TRANSFORMERS_4"  # the folder of the environment
# torch comes from this environment. Its other packages must stay hidden: version 4 needs older ones
LENT = ("torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe")


def python(cache: Path) -> str:
    """The interpreter of the environment. Skips the test where pip cannot install it.

    Args:
        cache: where the environment is made if the variable names no folder.
    """
    folder = Path(os.environ.get(PLACE) or cache / f"transformers-{VERSION}")
    interpreter = folder / "bin" / "python"
    if not interpreter.is_file() or (not (folder / "complete").is_file() and PLACE not in os.environ):
        _make(folder)
    done = subprocess.run(
        [interpreter, "-c", "import torch, transformers; print(transformers.__version__)"],
        env=_environment(cache),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == VERSION, done.stderr
    return str(interpreter)


def _make(folder: Path) -> None:
    venv.create(folder, with_pip=True, clear=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", f"transformers=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        pytest.skip(f"transformers {VERSION} cannot be installed: {last}; set {PLACE} to an environment that has it")
    site = next((folder / "lib").glob("python*/site-packages"))
    for name in LENT:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        source = Path(spec.origin).parent
        for path in (source, *source.parent.glob(f"{name}-*.dist-info")):
            if not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    (folder / "complete").touch()


def _environment(cache: Path) -> dict[str, str]:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    own = {"HF_MODULES_CACHE": str(cache / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {name: value for name, value in os.environ.items() if name not in hidden} | own


def answers(interpreter: str, script: str, calls: Any, place: Path) -> Any:
    """The answers of a script. It reads `calls` from its argument, a file, and saves to the same name with `.out`."""
    torch.save(calls, place / "calls.pt")
    done = subprocess.run(
        [interpreter, "-W", "ignore", "-c", script, str(place / "calls.pt")],
        cwd=place,
        env=_environment(place),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(place / "calls.pt.out")
