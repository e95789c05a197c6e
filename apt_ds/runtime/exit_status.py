"""From an exception to a line and an exit status: what every launcher script shares."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from apt_ds.config.errors import LostRank, RankError, UserError
from apt_ds.config.paths import shortened
from apt_ds.runtime.launch_variables import rank_of_message
from apt_ds.runtime.signals import Stopped

USER_ERROR = 2
LOST_RANK = 3
LONGEST = 900  # characters of an error's line


def main(action: Callable[[], object]) -> None:
    """Run `action` and leave the process with its exit status.

    Status 0 means success. The others follow one line on stderr: 2 for a mistake that the user can correct, 3 for a
    lost rank, 128 plus its number for a signal. Status 1 follows a traceback and is a defect.
    A run whose upload to the hub or whose tracker failed has succeeded: status 0, and one line says what failed.

    All ranks usually meet the same mistake. The first rank reports it. The others wait before they leave, since a
    launcher ends all processes as soon as one has failed.
    """
    try:
        action()
        # torch takes seconds to import: a wrong flag should not wait for it
        from apt_ds.runtime import collectives

        several = collectives.world_size() > 1
        collectives.shut_down()
        if several:
            # all is written; a thread of the communication libraries has aborted an ordinary exit once
            leave(0)
    except (UserError, RankError) as error:
        report_mistake(one_line(error))
    except LostRank as error:
        print(f"error: rank {rank_of_message()}, {one_line(error)}", file=sys.stderr, flush=True)
        leave(LOST_RANK)
    except Stopped as stop:
        if not rank_of_message():
            print(stop, file=sys.stderr, flush=True)
        leave(stop.status)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        leave(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG and error.filename:
            # no check of an option has found it
            report_mistake(f"the name {shortened(str(error.filename))!r} is too long for a file: give a shorter path")
        traceback.print_exc()
        leave(1)


def report_mistake(text: str) -> NoReturn:
    """Print the line of a mistake, and leave. See `main` about the ranks."""
    rank = rank_of_message()
    if rank:
        time.sleep(3)
    print(f"error: {f'rank {rank}: ' if rank else ''}{text}", file=sys.stderr, flush=True)
    leave(USER_ERROR)


def one_line(error: Exception) -> str:
    """An error's text as one line that a terminal can hold, whatever input it quotes."""
    text = " ".join(str(error).splitlines())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def leave(status: int) -> NoReturn:
    """End this process at once: a clean interpreter exit would wait for collectives that never come."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
