"""The place of a process in its world, as a launcher states it in environment variables. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping

from apt_ds.config.errors import UserError

LONGEST = 9  # digits of a number of processes or of a port
# what some launcher sets: deepspeed and torchrun, Open MPI, MPICH
LAUNCHERS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")  # by DeepSpeed


def number(name: str, default: int = 0, environment: Mapping[str, str] | None = None) -> int:
    """The number in a variable.

    Args:
        name: the variable.
        default: what an unset or empty variable stands for.
        environment: None for `os.environ`, which a library may have replaced since the import.

    Raises:
        UserError: the variable holds anything but a whole number of at least 0.
    """
    text = (os.environ if environment is None else environment).get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= LONGEST):
        raise UserError(f"{name}={text!r} is not a number of at least 0: unset it or start with the deepspeed launcher")
    return int(text)


def rank_of_message() -> int:
    """The rank that reports an error. Never fails: 0 where RANK is no number, so that the error itself is reported."""
    try:
        return number("RANK")
    except UserError:
        return 0


def launched() -> bool:
    """Whether a launcher has started this process. An empty variable is unset, as in `check_variables`."""
    return any(os.environ.get(name, "").strip() for name in LAUNCHERS)


def check_variables() -> None:
    """Check what a launcher states, before DeepSpeed and torch read it. Empty variables are unset.

    Raises:
        UserError: a variable holds no number.
    """
    for name in (*NUMBERS, *LAUNCHERS, *REQUIRED):
        if not os.environ.get(name, "-").strip():
            del os.environ[name]
        if name != "MASTER_ADDR":
            number(name)


def absent() -> str:
    """What to say where some launcher has started this process and variables that DeepSpeed needs are not set."""
    missing = [name for name in REQUIRED if not os.environ.get(name, "").strip()]
    stated = next((name for name in LAUNCHERS if os.environ.get(name, "").strip()), "")
    if not missing or not stated:
        return ""
    return (
        f"{stated}={os.environ[stated]!r} is set without {', '.join(missing)}: unset it or start with the deepspeed "
        "launcher. MPI's own launchers need mpi4py"
    )
