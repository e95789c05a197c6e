"""DeepSpeed's Muon optimizer, which every engine imports and no run uses."""

from __future__ import annotations

import functools
import importlib

from deepspeed.runtime import compiler


@functools.cache
def import_uncompiled() -> None:
    """Import Muon before an engine does, without compiling its functions.

    DeepSpeed compiles them as it imports them. That loads torch's whole compiler, which takes seconds of every start.
    """
    original = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = original
