"""What this process is doing, for its watchdog and for whoever reads why a run ended. One per process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Heartbeat:
    """What the process is doing.

    Attributes:
        phase: in words, with the step.
        beats: grows with every sign of progress.
        limited: whether progress must show before `--timeout` ends. Loading, rebuilding and writing may take longer. In
            those phases a process only has to be alive.
    """

    phase: str = "starting"
    beats: int = 0
    limited: bool = False


CURRENT = Heartbeat()


def phase(text: str, limited: bool = True) -> None:
    """Enter a phase."""
    CURRENT.phase, CURRENT.limited = text, limited
    progress()


def progress() -> None:
    """Show progress in the current phase."""
    CURRENT.beats += 1
