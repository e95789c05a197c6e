"""What a tracker is to a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Ended = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker learns of a run before its first step.

    Attributes:
        name: the run's name for people.
        folder: where the tracker's local files go.
        configuration: every option of the run, without secrets.
        step: optimizer steps that the run has done. Above 0 for a run that resumes.
        resumes: the id that `Tracker.start` returned before the run was interrupted. '' for a new run.
        secrets: whether the command line of this process states a secret.
    """

    name: str
    folder: Path
    configuration: Mapping[str, str | int | float | bool]
    step: int = 0
    resumes: str = ""
    secrets: bool = False


class Tracker(Protocol):
    """One run of a tracker. `start` is called on the main thread, everything else on a thread of its own."""

    def start(self, run: TrackedRun) -> str:
        """Open the run, or the interrupted run of the same id. Returns its id, '' where the tracker has none."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by name after `step` updates."""
        ...

    def histograms(self, step: int, values: Mapping[str, list[int]]) -> None:
        """Record one whole number for each layer or adapter, by name, after `step` updates."""
        ...

    def finish(self, table: Mapping[str, float], text: str, ended: Ended) -> None:
        """Close the run.

        Args:
            table: the numbers of the run's summary by name. Empty for a run that wrote none.
            text: the table that the run ends with, for people.
            ended: how the run ended.
        """
        ...
