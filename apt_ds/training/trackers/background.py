"""Calls of one tracker on a thread of its own: a slow tracker delays no step, and a broken one ends no run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

PENDING = 10_000  # calls that may wait for a tracker that does not answer
LONGEST = 300  # characters of the line of an error
Action = Callable[[], None]


class Background:
    """Runs actions in the order in which they came. After the first failure it drops the others.

    Attributes:
        failure: why the tracker gets no more calls. '' while it works.
    """

    def __init__(self, name: str, pending: int = PENDING) -> None:
        self.failure = ""
        self._actions: queue.Queue[Action | None] = queue.Queue(pending)
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracker {name}")
        self._thread.start()

    def submit(self, action: Action) -> None:
        """Run `action` soon. Returns at once."""
        if self.failure:
            return
        try:
            self._actions.put_nowait(action)
        except queue.Full:
            self.failure = f"it does not answer, and {self._actions.maxsize} calls wait for it"

    def close(self, seconds: float) -> None:
        """Wait for all actions, at most `seconds`."""
        if not self.failure:
            try:
                self._actions.put(None, timeout=seconds)
            except queue.Full:
                self.failure = f"it did not answer for {seconds:g} seconds"
                return
            self._thread.join(seconds)
            if self._thread.is_alive():
                self.failure = f"it did not answer for {seconds:g} seconds"

    def _work(self) -> None:
        while (action := self._actions.get()) is not None:
            try:
                action()
            except Exception as error:
                self.failure = short_reason(error)
                return


def short_reason(error: BaseException) -> str:
    """An error of a tracker or of the hub's client as one line, without its full stop."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
