"""The folder of this package's caches, and checks of the paths that users give, which may be any text.

`Path.is_file` and its like raise OSError for a name that is too long. `os.path.isfile` and its like return False.
"""

from __future__ import annotations

import os
from pathlib import Path

from apt_ds.config.errors import UserError

LONGEST_NAME = 255  # bytes of the name of a file or folder, on the usual file systems
LONGEST_PATH = 4095  # bytes of a path on Linux
SHOWN = 200  # characters of a value that a message quotes


def cache_root() -> Path:
    """The folder of all that this package keeps for later runs: APT_DS_CACHE, or `apt_ds` in the user's cache."""
    if root := os.environ.get("APT_DS_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apt_ds"


def shortened(text: str) -> str:
    """A value as a message names it. The middle of a long one is left out."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"


def too_long(path: str) -> bool:
    """Whether no file or folder can have this path, because a name in it has too many bytes."""
    data = path.encode(errors="surrogatepass")
    return len(data) > LONGEST_PATH or any(len(name) > LONGEST_NAME for name in data.split(os.sep.encode()))


def check_path(flag: str, path: str, advice: str) -> None:
    """Check that a path can exist.

    Args:
        flag: the option, for the message.
        path: its value.
        advice: what to give instead.

    Raises:
        UserError: a name in the path is too long.
    """
    if too_long(path):
        raise UserError(
            f"{flag} {shortened(path)!r} is not a file or folder, since a name has at most {LONGEST_NAME} bytes: "
            f"{advice}"
        )
