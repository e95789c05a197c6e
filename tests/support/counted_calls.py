"""A function that counts how often it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class CountedCalls:
    """Stands in the place of a function, calls it, and counts.

    Attributes:
        count: calls so far.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.count = function, 0

    def __call__(self, *values: Any, **named: Any) -> Any:
        """What the function returns."""
        self.count += 1
        return self.function(*values, **named)
