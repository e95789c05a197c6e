"""The kinds of error that end a run with one line instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can fix. The launcher prints its one line and exits with status 2."""


class RankError(RuntimeError):
    """Ranks disagree on a decision: raised on every rank, names those that differ."""


class LostRank(RuntimeError):  # noqa: N818 - what has happened, as the watchdog reports it
    """Another rank is gone, so that this one cannot go on."""


class Stopped(Exception):  # noqa: N818 - no error: the user asked for it
    """The run has left at a step boundary because of a signal. `status` is 128 plus its number."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.status = 128 + number
