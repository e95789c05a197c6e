"""The part of a stream's records that one process reads, pass after pass, from any position on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from apt_ds.config.errors import Stopped, UserError
from apt_ds.data.formats import Located
from apt_ds.data.stream_shards import Shard
from apt_ds.data.values import log

WAITS = (1.0, 5.0, 25.0)  # seconds before each new attempt to read


@dataclass(frozen=True)
class Start:
    """Where the records to train on begin: those before are evaluated on."""

    shard: int = 0
    number: int = 0


@dataclass(frozen=True)
class Retries:
    """How a stream goes on after an error of its connection.

    waits: seconds before each attempt without a record in between.
    waiting: called before each of these seconds, so that a caller can show that the process lives.
    tell: takes the line that says of the first error.
    """

    waits: Sequence[float] = field(default_factory=lambda: WAITS)
    waiting: Callable[[], None] = field(default=lambda: None)
    tell: Callable[[str], None] = field(default=log.warning)


class StreamPart:
    """The records of one process: every `world`-th, or whole shards where their number divides.

    Attributes:
        passes: passes over the stream that are done.
        count: records that were read in this pass.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[Shard],
        rank: int = 0,
        world: int = 1,
        start: Start | None = None,
        retries: Retries | None = None,
    ) -> None:
        """Prepare to read the part of process `rank` of `world`. The same arguments on all processes but `rank`.

        Args:
            name: the source, for messages.
            shards: those of the whole stream. No other part reads with these objects.
            rank: this process.
            world: number of processes.
            start: where the records begin.
            retries: how to go on after an error.
        """
        self.name, self.shards, self.rank, self.world = name, list(shards), rank, world
        self.start, self.retries = start or Start(), retries or Retries()
        # shards that are held out in whole could be all that a process has
        self.whole = len(self.shards) % world == 0 and not self.start.shard
        self.passes, self.count = 0, 0
        self._shard, self._position = 0, list[Any]()
        self._reading: Iterator[Located] | None = None
        self._warned = False

    def read(self, count: int) -> list[Located]:
        """The next `count` records, fewer at the end of a pass. After the end the next pass begins."""
        if self._reading is None:
            self._reading = self._records()
        records: list[Located] = []
        for located in self._reading:
            records.append(located)
            if len(records) == count:
                self.count += count
                return records
        self.passes += 1
        self.count, self._shard, self._position, self._reading = 0, 0, [], None
        return records

    def state(self) -> dict[str, Any]:
        """Where `read` goes on, as JSON can write it."""
        position = self._position if self._reading is None else self.shards[self._shard].current()
        values = {"passes": self.passes, "count": self.count, "shard": self._shard, "position": position}
        return values | {"shards": len(self.shards)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        assert state["shards"] == len(self.shards)
        self.passes, self.count = state["passes"], state["count"]
        self._shard, self._position, self._reading = state["shard"], list(state["position"]), None

    def next_place(self) -> Start:
        """Where the next record is, of the only process. Reads it."""
        assert self.world == 1
        if not self.read(1):
            return Start(len(self.shards))
        return Start(self._shard, self.shards[self._shard].number - 1)

    def _records(self) -> Iterator[Located]:
        """The records of this pass from the position on."""
        position, self._position = self._position, []
        while True:
            if self._shard >= self.start.shard and (not self.whole or self._shard % self.world == self.rank):
                yield from self._of_shard(self.shards[self._shard], self._shard, position)
            if self._shard + 1 == len(self.shards):
                return
            self._shard, position = self._shard + 1, []

    def _of_shard(self, shard: Shard, index: int, position: list[Any]) -> Iterator[Located]:
        first = self.start.number if index == self.start.shard else 0

        def wanted(number: int) -> bool:
            return number >= first and (self.whole or (number + index) % self.world == self.rank)

        failures = 0
        # that of an earlier pass, until the shard is read
        shard.position = list(position)
        while True:
            try:
                for located in shard.records(position, wanted):
                    failures = 0
                    yield located
                return
            except (UserError, Stopped):
                raise
            except shard.retried as error:
                self._wait(failures, shard, error)
                failures += 1
                position = shard.current()

    def _wait(self, failures: int, shard: Shard, error: Exception) -> None:
        """Wait before the next attempt to read. Raises UserError after the last one."""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if failures == len(self.retries.waits):
            raise UserError(
                f"{shard.label} cannot be read after record {shard.number}: {reason} ({failures} new attempts failed)"
            ) from error
        if not self._warned:
            self.retries.tell(
                f"{shard.label}: the connection dropped after record {shard.number} ({reason}): trying again"
            )
            self._warned = True
        for _ in range(max(1, round(self.retries.waits[failures]))):
            self.retries.waiting()
            time.sleep(min(1.0, self.retries.waits[failures]))
