"""Ends this process when another rank is gone or nobody moves: a collective would wait for it for ever.

Two threads. One exchanges signs of life with all ranks through the rendezvous store. It may get stuck, as that store
lives in one of the processes. The other only looks at clocks. Times are this process's own: no clocks are compared.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

from apt_ds.runtime import collectives, exit_status, heartbeat

SILENCE = 60.0  # seconds after which a silent rank is lost, where its collectives would raise nothing
ADVICE = "go on with --resume_from_checkpoint last"
# in the store: a signal's number; how many ranks are leaving for it, and know that all are
STOPPED, HEARD, SURE = "stopped", "heard", "sure"


@dataclass
class Seen:
    """The last that was heard of a rank, and when (monotonic seconds) it last was alive and last made progress."""

    sign: int = -1
    beats: int = -1
    phase: str = "starting"
    limited: bool = False
    alive: float = 0.0
    moved: float = 0.0


class Watchdog:
    """A context in which the process ends with `exit_status.LOST_RANK` at most `timeout` seconds after a rank was lost.

    Attributes:
        leave: called where another rank has left before the first step because of a signal, with its number.
        silence: seconds after which a rank without a sign of life is lost, at most `timeout`. None: `SILENCE` where a
            collective would wait for ever for a dead peer, else `timeout`. A thread sends signs of life, which need no
            progress.
    """

    def __init__(
        self,
        timeout: float,
        leave: Callable[[int], None] = lambda number: None,
        silence: float | None = None,
    ) -> None:
        self.leave = leave
        if silence is None:
            silence = SILENCE if collectives.waits_for_lost_peers() else timeout
        silence = min(silence, timeout)
        self.period = min(5.0, timeout / 20, silence / 12)
        self.limit = timeout - 3 * self.period
        self.silence = silence - 3 * self.period
        now = time.monotonic()
        self.seen = [Seen(alive=now, moved=now) for _ in range(collectives.world_size())]
        self.answered = now  # when the store last answered
        self._over = threading.Event()
        self._store = collectives.mailbox(timeout)

    def __enter__(self) -> Watchdog:
        if self._store is not None:
            for work in (self._exchange, self._watch):
                threading.Thread(target=work, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()

    def _exchange(self) -> None:
        assert self._store is not None
        keys = [str(rank) for rank in range(len(self.seen))]
        sign, complete, leaving = 0, False, False
        while not self._over.wait(self.period if sign else 0):
            sign += 1
            own = heartbeat.CURRENT
            try:
                self._store.set(str(collectives.rank()), json.dumps([sign, own.beats, own.phase, own.limited]))
                complete = complete or self._store.check(keys)
                notes = self._store.multi_get(keys) if complete else []
                stopped = int(self._store.get(STOPPED)) if self._store.check([STOPPED]) else 0
            except Exception:
                # its process is gone: the other thread notices the silence
                return
            self.answered = time.monotonic()
            for seen, note in zip(self.seen, notes, strict=False):
                take(seen, json.loads(note), self.answered)
            if stopped and not leaving:
                # this thread goes on hearing of others: the one that leaves may wait for them
                leaving = True
                threading.Thread(target=self.leave, args=(stopped,), daemon=True, name="leaving").start()

    def tell(self, number: int) -> None:
        """Have all ranks leave because of a signal. Returns once all have heard.

        A rank that is found silent was lost first, and a launcher that saw it sent the signal: then this process ends
        with `exit_status.LOST_RANK`, so that other hosts start again too.
        """
        # where the store has gone, so has the first rank
        with suppress(RuntimeError):
            if self._store is None or self._all_are_leaving(self._store, number):
                return
        if lost := self.lost():
            self._end(f"asked to leave, but {lost}")

    def _all_are_leaving(self, store: collectives.Store, number: int) -> bool:
        """Whether all ranks are leaving for the same signal."""

        def joined(what: str, periods: int) -> bool:
            there, end = store.add(what, 1), time.monotonic() + periods * self.period
            while there < len(self.seen) and time.monotonic() < end:
                time.sleep(self.period / 50)
                there = store.add(what, 0)
            return there >= len(self.seen)

        store.set(STOPPED, str(number))
        heard = joined(HEARD, 4)
        # the first rank keeps the store: it goes when nobody asks it any more
        if heard and collectives.is_main():
            joined(SURE, 1)
        elif heard:
            store.add(SURE, 1)
        return heard

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(self.period):
            now = time.monotonic()
            if now - last > 4 * self.period + 1:
                # this process itself was stopped: it could not have heard anyone
                self._forgive(now)
            last = now
            verdict = self.verdict(now)
            if verdict and not self._over.is_set():
                self._end(verdict)

    def _end(self, why: str) -> NoReturn:
        # the first rank's progress bar has left no end of line
        start = "\n" if collectives.is_main() else ""
        text = f"{start}error: rank {collectives.rank()}, in {heartbeat.CURRENT.phase}: {why}; {ADVICE}"
        print(text, file=sys.stderr, flush=True)
        exit_status.leave(exit_status.LOST_RANK)

    def _forgive(self, now: float) -> None:
        self.answered = now
        for seen in self.seen:
            seen.alive = seen.moved = now

    def verdict(self, now: float) -> str:
        """Why this process must end, empty if it need not."""
        if now - self.answered > self.silence:
            return f"rank 0, which keeps the signs of life, has not answered for {now - self.answered:.0f} s"
        if silent := self.silent(now, self.silence):
            return f"{self.names(silent)} gave no sign of life for {self.silence:.0f} s"
        if all(seen.limited and now - seen.moved > self.limit for seen in self.seen):
            slowest = min(seen.beats for seen in self.seen)
            behind = [rank for rank, seen in enumerate(self.seen) if seen.beats == slowest]
            return f"no rank has moved for {self.limit:.0f} s; furthest behind: {self.names(behind)}"
        return ""

    def silent(self, now: float, limit: float) -> list[int]:
        """Other ranks not heard of for more than `limit` seconds."""
        return [rank for rank, seen in enumerate(self.seen) if rank != collectives.rank() and now - seen.alive > limit]

    def names(self, ranks: list[int]) -> str:
        """Ranks with the phase each was last in."""
        return ", ".join(f"rank {rank} (last in {self.seen[rank].phase})" for rank in ranks)

    def lost(self) -> str:
        """After a collective has failed: who is gone. Empty if that does not show in a few periods."""
        end = time.monotonic() + 4 * self.period
        while time.monotonic() < end:
            now = time.monotonic()
            if now - self.answered > 2.5 * self.period:
                return "rank 0 does not answer"
            if silent := self.silent(now, 2.5 * self.period):
                return f"{self.names(silent)} is gone"
            time.sleep(self.period / 4)
        return ""


def take(seen: Seen, note: list[object], now: float) -> None:
    """Take over what a rank says of itself."""
    sign, beats, phase, limited = note
    if sign != seen.sign:
        seen.alive = now
    if beats != seen.beats:
        seen.moved = now
    seen.sign, seen.beats, seen.phase, seen.limited = int(str(sign)), int(str(beats)), str(phase), bool(limited)
