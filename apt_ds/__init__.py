"""Adaptive pruning and tuning of language models under DeepSpeed.

Names below are loaded when they are first used, so that importing the package takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apt_ds.api import evaluate, export, load_adapters, prune, train
    from apt_ds.config.errors import UserError
    from apt_ds.config.run_config import RunConfig
    from apt_ds.training.hf_callback import AptCallback

__version__ = "0.1.0"
__all__ = ["AptCallback", "RunConfig", "UserError", "evaluate", "export", "load_adapters", "prune", "train"]

_MODULES = {
    **dict.fromkeys(("evaluate", "export", "load_adapters", "prune", "train"), "apt_ds.api"),
    "AptCallback": "apt_ds.training.hf_callback",
    "RunConfig": "apt_ds.config.run_config",
    "UserError": "apt_ds.config.errors",
}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'apt_ds' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
