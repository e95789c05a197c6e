"""The argument parser of all commands, and the types of their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from apt_ds.config.errors import UserError
from apt_ds.config.nearest import suggest
from apt_ds.config.option_types import LARGEST, decimal

LONGEST = 100  # characters of a number, which Python reads in time


class Parser(argparse.ArgumentParser):
    """Arguments of a command: every mistake is a `UserError` of one line that names the nearest option."""

    def __init__(self, usage: str, **settings: Any) -> None:
        super().__init__(usage=usage, allow_abbrev=False, **settings)
        # the deepspeed launcher passes it. It is not for users
        self.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of leaving the process."""
        raise UserError(f"{one_line(message)}. --help lists all options")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of `argv`, and as `stated` the names of those that it states. Raises UserError."""
        # argparse would first complain of a required option whose name is misspelt
        flags = [word.split("=")[0] for word in argv if word.startswith("--") and word != "--"]
        wrong = [flag for flag in flags if flag not in self._option_string_actions]
        known, unknown = (None, wrong) if wrong else self.parse_known_args(list(argv))
        if known is None or unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
            raise UserError(f"{flag} is an unknown option{suggest(flag, self.names())}. --help lists all options")
        known.stated = frozenset(self._option_string_actions[flag].dest for flag in flags)
        return known

    def names(self) -> list[str]:
        """All options a user may write."""
        hidden = {
            name for action in self._actions if action.help is argparse.SUPPRESS for name in action.option_strings
        }
        return [name for name in self._option_string_actions if name not in hidden]


def one_line(text: str) -> str:
    """The text with single spaces in place of line ends and runs of blanks."""
    return " ".join(text.split())


def at_least(low: int) -> Callable[[str], int]:
    """The type of an argument: a whole number not below `low`, and not above `LARGEST`."""

    def convert(text: str) -> int:
        number = int(text) if text.isascii() and text.removeprefix("-").isdecimal() and len(text) < LONGEST else None
        if number is None or not low <= number <= LARGEST:
            most = f" and at most {LARGEST}" if number is not None and number > LARGEST else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give a whole number, at least {low}{most}")
        return number

    return convert


def above_zero(text: str) -> float:
    """The type of an argument: a finite number above 0."""
    try:
        value = decimal(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give a number above 0")
    return value


def split_commas(text: str) -> list[str]:
    """The type of an argument: a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def counts(text: str) -> list[int]:
    """The type of an argument: comma-separated whole numbers of at least 1."""
    return [at_least(1)(number) for number in split_commas(text)]
