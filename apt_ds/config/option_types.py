"""What a value of an option may be, and the fields of `RunConfig` that are made of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import Field, field
from numbers import Integral, Real
from typing import Any, NamedTuple

from apt_ds.config.errors import UserError

Value = str | int | float | bool
LARGEST = 2**63 - 1  # of whole numbers: libraries keep them in 64 bits with a sign


def split_commas(text: str) -> list[str]:
    """The words of a comma-separated list."""
    return [word.strip() for word in text.split(",")]


def whole(text: str) -> int:
    """The whole number that a text states. Raises ValueError."""
    return int(_plain(text))


def decimal(text: str) -> float:
    """The number that a text states. Raises ValueError."""
    return float(_plain(text))


def _plain(text: str) -> str:
    """The text. Raises ValueError for digits that only Python takes: 1_0 is 10 there."""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return text


def check_text(label: str, text: str) -> None:
    """Raise UserError for a text that no path and no file in UTF-8 can hold. label: where it came from."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{label} {text!r} is not allowed: give text that is valid in UTF-8") from None
    if "\0" in text:
        raise UserError(f"{label} {text!r} is not allowed: give text without NUL")


READERS: dict[type, Callable[[str], Value]] = {int: whole, float: decimal, str: str}


class Range(NamedTuple):
    """Finite numbers from `low` to `high`. An end that is open does not belong to it."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """True for a number of the range, never for NaN or infinity."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low = f"{'above' if self.low_open else 'at least'} {_shown(self.low)}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.high_open else 'at most'} {_shown(self.high)}"


def _shown(number: float) -> str:
    """A number as a user would write it."""
    return str(number) if isinstance(number, int) else f"{number:g}"


class OrZero(NamedTuple):
    """0, and the numbers of `range`."""

    range: Range

    def holds(self, value: float) -> bool:
        """True for 0 and for a number of the range."""
        return value == 0 or self.range.holds(value)

    def __str__(self) -> str:
        return f"0, or {self.range}"


class OrAutomatic(NamedTuple):
    """The numbers of `range`, and -1 for a value that the run chooses."""

    range: Range

    def holds(self, value: float) -> bool:
        """True for -1 and for a number of the range."""
        return value == -1 or self.range.holds(value)

    def __str__(self) -> str:
        return f"{self.range}, or -1"


class OneOf(tuple[str | int, ...]):
    """Words or numbers of which the value is one."""

    def holds(self, value: Value) -> bool:
        """True for one of them."""
        return value in self

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self))


class SomeOf(OneOf):
    """Words of which the value is a comma-separated list."""

    def holds(self, value: Value) -> bool:
        """True for a list of at least one of the words, none of them twice."""
        given = split_commas(str(value))
        return set(given) <= set(self) and len(given) == len(set(given))

    def __str__(self) -> str:
        return "a comma-separated list, nothing twice, of " + ", ".join(map(str, self))


POSITIVE = Range(0, low_open=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
# examples and micro-batches of a step: rows are listed before they are read, so that a slip must not ask for 10**18
BATCH = Range(1, 1_000_000)
BELOW_ONE = Range(0, 1, high_open=True)
UP_TO_ONE = Range(0, 1, low_open=True)
ZERO_TO_ONE = Range(0, 1)
BITS = OneOf((16, 8, 4))
# seeds of batches and ranks are sums with small numbers, and torch takes seeds of 64 bits
SEED = Range(0, LARGEST)
# logits are divided by it, and the loss is multiplied by its square, both in 32 bits
TEMPERATURE = Range(0.01, 100)


def option(
    default: Value,
    help: str,
    allowed: Range | OrAutomatic | OrZero | OneOf | None = None,
    flag: str = "",
    switch: str = "",
) -> Any:
    """A field that the user sets. Its type is the type of `default`.

    Args:
        default: the value of a run that does not state the option.
        help: what the help page says.
        allowed: the values that the option may have. None: all of its type.
        flag: its name for users, if it has another.
        switch: see `choice`.
    """
    return field(default=default, metadata={"flag": flag, "help": help, "allowed": allowed, "switch": switch})


def choice(values: str, help: str, flag: str = "", switch: str = "") -> Any:
    """A field whose value is one of several.

    Args:
        values: the allowed values, separated by commas. The first one is the default.
        help: what the help page says.
        flag: its name for users, if it has another.
        switch: the value that true, or the flag alone, means. False then means the first value.
    """
    return option(split_commas(values)[0], help, OneOf(split_commas(values)), flag, switch)


def converted(label: str, spec: Field[Any], value: object) -> Value:
    """`value` in the type of the field. A path becomes text.

    Args:
        label: where the value came from, for the message.
        spec: the option.
        value: what the user gave.

    Raises:
        UserError: the value has no such form.
    """
    kind: Any = type(spec.default)
    value = spelled_out(spec, os.fspath(value) if isinstance(value, os.PathLike) else value)
    if isinstance(value, list) and isinstance(spec.metadata["allowed"], SomeOf):
        return ",".join(map(str, value))
    if isinstance(value, str):  # from the command line, and what YAML makes of 1e-4
        with suppress(KeyError, ValueError):
            value = {"true": True, "false": False}[value.lower()] if kind is bool else READERS[kind](value)
    if type(value) is not bool and isinstance(value, Integral):
        value = int(value)  # of numpy too
    elif type(value) is not bool and isinstance(value, Real):
        value = float(value)
    if kind is float and type(value) is int:
        with suppress(OverflowError):
            return float(value)
    if kind is int and type(value) is int and abs(value) > LARGEST:
        raise UserError(f"{label} {value} is not allowed: give a whole number from {-LARGEST} to {LARGEST}")
    if kind is str and isinstance(value, str):
        check_text(label, value)
    if isinstance(value, str | int | float) and type(value) is kind:
        return value
    expected = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    raise UserError(f"{label} {value!r} is not allowed: give {expected[kind]}")


def spelled_out(spec: Field[Any], value: Any) -> Any:
    """The value of an option, with the word that true or false means where the option has one."""
    switch = spec.metadata.get("switch")
    text = str(value).lower() if isinstance(value, bool | str) else ""
    return {"true": switch, "false": spec.default}.get(text, value) if switch else value
