"""Where an optimizer step goes: the time between marks, each stretch given to the innermost phase. One per process.

On the CPU a mark is the wall clock. On a GPU it is an event of the compute stream, read once the step is over, so that
nothing waits for a measurement. Communication that hides behind computation therefore counts as computation: `gather`
and `reduce` are what the step waits for. Off, which is the default, nothing is marked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])
Mark = Any  # seconds, or a torch.cuda.Event

OTHER = "other"
PHASES = ("data", "forward", "backward", "gather", "reduce", "salience", "search", "optimizer", OTHER)
DENSE, CUT = "dense", "cut"


class Profile:
    """Seconds per phase of every step, before the first cut and since the last."""

    def __init__(self) -> None:
        self.start(torch.device("cpu"), on=False)

    def start(self, device: torch.device, on: bool) -> None:
        """Forget everything, and record from here on if `on`."""
        self.on, self.device = on, device
        self._steps: dict[str, list[dict[str, float]]] = {DENSE: []}
        self._when = DENSE
        self._spans: list[tuple[str, Mark, Mark]] = []
        self._stack: list[str] = []
        self._since: Mark = None

    def cut(self) -> None:
        """From here on steps are those of a smaller model."""
        if self.on:
            self._close()
            self._when = CUT
            self._steps[CUT] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time until the end belongs to `name`, but for phases inside. Outside of a step only the search counts."""
        if not self.on or not (self._stack or name in (OTHER, "search")):
            yield
            return
        if name == OTHER:
            self._close()
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Median `seconds` of every phase over steps, and its `share` of their sum, by dense and cut.

        The first step of each, which warms caches, does not count where there are others.
        """
        self._close()
        summary: dict[str, dict[str, dict[str, float]]] = {}
        for when, steps in self._steps.items():
            counted = steps[1:] or steps
            if not counted:
                continue
            seconds = {name: statistics.median(step.get(name, 0.0) for step in counted) for name in PHASES}
            total = sum(seconds.values()) or 1.0
            share = {name: value / total for name, value in seconds.items()}
            summary[when] = {"seconds": seconds, "share": share, "steps": {"counted": len(counted)}}
        return summary

    def _turn(self) -> None:
        """End the stretch under way."""
        now: Mark = time.perf_counter()
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        if self._stack:
            self._spans.append((self._stack[-1], self._since, now))
        self._since = now

    def _close(self) -> None:
        """Add the last step up."""
        if not self._spans:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        step: dict[str, float] = {}
        for name, start, end in self._spans:
            seconds = start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start
            step[name] = step.get(name, 0.0) + seconds
        self._spans = []
        self._steps[self._when].append(step)


NOW = Profile()


def timed(name: str) -> Callable[[F], F]:
    """A function whose time belongs to the phase `name`. `other` is a whole step."""

    def wrap(function: F) -> F:
        @wraps(function)
        def inner(*arguments: Any, **options: Any) -> Any:
            if not NOW.on:
                return function(*arguments, **options)
            with NOW.phase(name):
                return function(*arguments, **options)

        return inner  # type: ignore[return-value]

    return wrap


def seen(name: str, function: F) -> F:
    """`function` itself while nothing is recorded, else as `timed`."""
    return timed(name)(function) if NOW.on else function


def render(summary: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table of a `summary`."""
    lines = [f"{'where a step goes':20}" + "".join(f"{when + ', ms':>14}{'share':>9}" for when in summary)]
    for name in PHASES:
        cells = [
            f"{1e3 * timing['seconds'][name]:>14,.2f}{100 * timing['share'][name]:>7.1f} %"
            for timing in summary.values()
        ]
        lines.append(f"{name:20}" + "".join(cells))
    sums = [f"{1e3 * sum(timing['seconds'].values()):>14,.2f}{'':>9}" for timing in summary.values()]
    return "\n".join([*lines, f"{'sum':20}" + "".join(sums)])
