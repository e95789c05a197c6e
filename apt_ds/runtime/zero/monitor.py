"""DeepSpeed's own monitors: the sections `tensorboard`, `wandb`, `csv_monitor` and `comet` of its file.

An engine makes its monitors. A run has many engines, one after the other: the first one's monitors serve them all, so
that a run stays one run of a tracker, and a CSV file has one header.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel

from apt_ds.config.errors import UserError

SECTIONS: dict[str, type[DeepSpeedConfigModel]] = {
    "tensorboard": TensorBoardConfig,
    "wandb": WandbConfig,
    "csv_monitor": CSVConfig,
    "comet": CometConfig,
}
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
Event = tuple[str, Any, int]


class Monitor:
    """Passes an engine's events on. After a failure it says so once, and drops all others.

    Attributes:
        enabled: whether the engine collects events.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.enabled = bool(inner.enabled)

    def write_events(self, events: list[Event]) -> None:
        """Write (name, value, number of training examples so far). Only the first rank does."""
        try:
            self._inner.write_events(events)
        except Exception as error:
            self.enabled = False
            text = " ".join(str(error).split()) or type(error).__name__
            print(f"DeepSpeed's monitor failed: {text}. The run goes on without it", file=sys.stderr, flush=True)


def check_packages(config: Mapping[str, Any], where: str) -> None:
    """Check that the packages of all enabled monitors are installed. Imports none of them.

    Raises:
        UserError: a package is missing.
    """
    for name, package in PACKAGES.items():
        section = config.get(name)
        enabled = isinstance(section, dict) and section.get("enabled")
        if enabled and find_spec(package) is None:
            raise UserError(f"{where}: '{name}' needs the package {package}: install it, or remove the section")


def without_monitors(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration for an engine that makes no monitors."""
    return {name: value for name, value in config.items() if name not in SECTIONS}
