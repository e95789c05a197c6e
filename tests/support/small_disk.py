"""A small file system of its own, for tests of a full disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, size: int, required: bool = True) -> Iterator[Path]:
    """Mount an empty tmpfs, and unmount it at the end.

    Args:
        place: the folder to mount it on. It is made if it does not exist.
        size: bytes of the file system.
        required: skip the test where this process may not mount a file system. Otherwise the folder stays as it is.

    Yields:
        The folder.
    """
    place.mkdir(exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = bool(shutil.which("mount")) and not subprocess.run(words, capture_output=True).returncode
    if required and not mounted:
        pytest.skip("a full disk needs the right to mount a small tmpfs")
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
