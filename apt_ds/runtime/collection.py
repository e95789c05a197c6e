"""Garbage collection in a process that belongs to this package."""

from __future__ import annotations

import gc


def leave_out_libraries() -> None:
    """Let no later collection visit the objects that exist now. Call it once all libraries are imported.

    They are some 400,000 and stay until the process ends. Each collection would visit them for 0.4 s. A rebuild makes
    up to three.
    """
    gc.collect()
    gc.freeze()
