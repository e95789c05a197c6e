"""Values that follow one another, made ahead by one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """What a function returns call after call. It runs in a thread of its own, some calls ahead."""

    def __init__(self, make: Callable[[], T], ahead: int) -> None:
        """Start no thread yet. ahead: values that are made ahead. 0: none, and no thread."""
        self.make, self.ahead = make, ahead
        self._pool: ThreadPoolExecutor | None = None
        self._coming: deque[Future[T]] = deque()

    def next(self) -> T:
        """The next value. An error of the function is raised here."""
        if not self.ahead:
            return self.make()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="stream")
        while len(self._coming) <= self.ahead:
            self._coming.append(self._pool.submit(self.make))
        return self._coming.popleft().result()

    def close(self) -> None:
        """End the thread. What it made ahead is lost."""
        pool, self._pool = self._pool, None
        self._coming.clear()
        if pool is not None:
            pool.shutdown(cancel_futures=True)
