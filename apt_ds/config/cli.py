"""The argument parser of the launcher scripts, and the types of their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from apt_ds.config.errors import UserError
from apt_ds.config.nearest import suggest


class Parser(argparse.ArgumentParser):
    """Arguments of a script: every mistake is a `UserError` of one line that names the nearest option."""

    def __init__(self, usage: str) -> None:
        super().__init__(usage=usage, allow_abbrev=False)
        # the deepspeed launcher passes it; not for users
        self.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{' '.join(message.split())}; --help lists all options")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of `argv`. Raises UserError."""
        # argparse would first complain of a required option whose name is misspelt
        flags = [word.split("=")[0] for word in argv if word.startswith("--") and word != "--"]
        wrong = [flag for flag in flags if flag not in self._option_string_actions]
        known, unknown = (None, wrong) if wrong else self.parse_known_args(list(argv))
        if known is None or unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
            raise UserError(f"{flag} is no option{suggest(flag, self.names())}; --help lists all")
        return known

    def names(self) -> list[str]:
        """All options a user may write."""
        hidden = {
            name for action in self._actions if action.help is argparse.SUPPRESS for name in action.option_strings
        }
        return [name for name in self._option_string_actions if name not in hidden]


def at_least(low: int) -> Callable[[str], int]:
    """The type of an argument: a whole number not below `low`."""

    def convert(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give a whole number, at least {low}")
        return int(text)

    return convert


def split_commas(text: str) -> list[str]:
    """The type of an argument: a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]
