"""From an exception to a line and an exit status: what every launcher script shares."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from apt_ds.config import LostRank, RankError, UserError
from apt_ds.nearest import suggest
from apt_ds.stopping import Stopped

USER_ERROR = 2
LOST_RANK = 3
LONGEST = 900  # characters of an error's line


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


def words(text: str) -> list[str]:
    """The type of an argument: a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def main(action: Callable[[], object]) -> None:
    """Run `action` and leave the process: 0, or after one line on stderr

    2: a mistake the user can mend; 3: another rank is gone; 128 plus its number: stopped by a signal. Anything else
    is a defect: 1 and a traceback.

    All ranks usually meet the same mistake: the first one tells, the others give it time to, since a launcher
    ends all processes as soon as one has failed.
    """
    try:
        action()
        # torch takes seconds to import: a wrong flag should not wait for it
        from apt_ds import dist

        dist.shut_down()
    except (UserError, RankError) as error:
        rank = int(os.environ.get("RANK", "0"))
        where = f"rank {rank}: " if rank else ""
        if rank:
            time.sleep(3)
        print(f"error: {where}{one_line(error)}", file=sys.stderr, flush=True)
        leave(USER_ERROR)
    except LostRank as error:
        print(f"error: rank {os.environ.get('RANK', '0')}, {one_line(error)}", file=sys.stderr, flush=True)
        leave(LOST_RANK)
    except Stopped as stop:
        if not int(os.environ.get("RANK", "0")):
            print(stop, file=sys.stderr, flush=True)
        leave(stop.status)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        leave(128 + signal.SIGINT)
    except Exception:
        traceback.print_exc()
        leave(1)


def one_line(error: Exception) -> str:
    """An error's text as one line that a terminal can hold, whatever input it quotes."""
    text = " ".join(str(error).splitlines())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def leave(status: int) -> None:
    """End this process at once: a clean interpreter exit would wait for collectives that never come."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
