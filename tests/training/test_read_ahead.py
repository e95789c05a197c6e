"""Values made ahead come in order, and none is made that nobody asked to be ahead."""

from __future__ import annotations

import threading
import time
from itertools import count

import pytest

from apt_ds.training.read_ahead import ReadAhead


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_values_come_in_order(ahead: int) -> None:
    numbers, threads = count(), set[str]()

    def make() -> int:
        threads.add(threading.current_thread().name.split("_")[0])
        return next(numbers)

    reading = ReadAhead(make, ahead)
    assert [reading.next() for _ in range(20)] == list(range(20))
    reading.close()
    assert threads == {"stream" if ahead else threading.current_thread().name.split("_")[0]}
    assert next(numbers) <= 20 + ahead
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_it_works_while_the_caller_does() -> None:
    second = threading.Event()
    calls: list[int] = []

    def make() -> int:
        calls.append(1)
        if len(calls) == 2:
            second.set()
        return len(calls)

    reading = ReadAhead(make, 1)
    assert reading.next() == 1 and second.wait(10)
    time.sleep(0.01)
    assert len(calls) == 2
    reading.close()


def test_an_error_is_raised_where_its_value_is_asked_for() -> None:
    numbers = count()

    def make() -> float:
        return 1 / (2 - next(numbers))

    reading = ReadAhead(make, 3)
    assert [reading.next(), reading.next()] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        reading.next()
    reading.close()
