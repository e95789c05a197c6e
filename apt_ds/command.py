"""From an exception to a line and an exit status: what every launcher script shares."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

from apt_ds.config import RankError, UserError
from apt_ds.stopping import Stopped

USER_ERROR = 2


def main(action: Callable[[], object]) -> None:
    """Run `action` and leave the process: 0, or 2 after one line on stderr for a mistake the user can mend.

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
        print(f"error: {where}{error}", file=sys.stderr, flush=True)
        leave(USER_ERROR)
    except Stopped as stop:
        if not int(os.environ.get("RANK", "0")):
            print(stop, file=sys.stderr, flush=True)
        leave(stop.status)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        leave(128 + signal.SIGINT)


def leave(status: int) -> None:
    """End this process at once: a clean interpreter exit would wait for collectives that never come."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
