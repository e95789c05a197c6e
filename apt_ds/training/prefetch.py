"""What coming steps need, made ahead by threads while a step computes.

Threads end with their process, so that no exit leaves one behind. They share the rows of the data set with the process.
A failure in a thread is raised where the step asks for its value.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """The values of a function of the step. Steps are asked for in order, apart from jumps."""

    def __init__(self, make: Callable[[int], T], workers: int) -> None:
        """Start no thread yet.

        Args:
            make: a function that several threads may call at once.
            workers: number of threads, and of steps made ahead. 0: each value is made when it is asked for.
        """
        self.make, self.workers = make, workers
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[T]] = {}

    def get(self, step: int) -> T:
        """The value of a step. The threads then make those of the steps after it."""
        if not self.workers:
            return self.make(step)
        self._pool = self._pool or ThreadPoolExecutor(self.workers, thread_name_prefix="dataloader")
        wanted = range(step, step + self.workers + 1)
        for old in self._ahead.keys() - set(wanted):
            self._ahead.pop(old).cancel()
        for number in wanted:
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self.make, number)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        """End the threads. A later `get` starts them again."""
        pool, self._pool = self._pool, None
        self._ahead.clear()
        if pool is not None:
            pool.shutdown(cancel_futures=True)
