"""Signals that ask a run to stop: before its first step it ends at once, then at the next step boundary.

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 (Slurm's warning before it takes a node away). A second SIGINT leaves at once,
even while this process waits inside a collective. Once the model is being written a run is brought to its end.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from apt_ds.config.errors import Stopped
from apt_ds.runtime import heartbeat
from apt_ds.runtime.launch_variables import rank_of_message

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOPPED_EARLY = "stopped before the first step, in {phase}: nothing was to be saved. Start again"

Handler = Callable[[int, FrameType | None], None]
UNFINISHED: set[Path] = set()  # large folders that this process is writing before the first step


class StopSignals:
    """A context in which signals are noted.

    Attributes:
        asked: number of the first signal. 0 before.
        exits: whether a signal may end the process. False for a single process that belongs to a caller: `Stopped` is
            then raised in the main thread before the first step, and KeyboardInterrupt on a second SIGINT.
        early: whether there is nothing to save yet.
        tell: has all ranks leave with the number that it receives.
        discard: removes the output folder where the run made it and has nothing to keep in it.
    """

    def __init__(self, exits: bool = True) -> None:
        self.exits = exits
        self.asked = 0
        self.early = True
        self.tell: Callable[[int], None] = lambda number: None
        self.discard: Callable[[], None] = lambda: None
        self._leaving = threading.Lock()
        self._before: dict[int, Any] = {}
        self._pair: tuple[socket.socket, ...] = ()  # wakes the thread that listens

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        if not self.exits:
            self._take(self._raise)
            return self
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._pair, self._wakeup = (ours, theirs), signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self._take(self._note)
        # the interpreter runs handlers between its own instructions only, and a collective may wait for minutes
        threading.Thread(target=self._listen, args=(ours,), daemon=True, name="signals").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._pair:
            signal.set_wakeup_fd(self._wakeup)
        for end in self._pair:
            end.close()
        self._pair = ()

    def _take(self, handler: Handler) -> None:
        """Handle the signals whose handlers Python can put back. One that was set before Python started stays."""
        numbers = [number for number in ASKING if signal.getsignal(number) is not None]
        self._before = {number: signal.signal(number, handler) for number in numbers}

    def begin(self) -> None:
        """From now on there is something to save. Call it from the main thread. It leaves if a signal came before."""
        self.check_early()
        self.early = False
        if self.asked and self.exits:
            self.leave(self.asked)

    @property
    def hidden(self) -> bool:
        """Whether a signal came before the first step. Other code may have taken its exception for an error."""
        return bool(self.asked) and self.early and not self.exits

    def check_early(self) -> None:
        """Raise `Stopped` if a signal came before the first step."""
        if self.hidden:
            raise Stopped(self.asked, STOPPED_EARLY.format(phase=heartbeat.CURRENT.phase))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or number

    def _raise(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal by an exception where no step can be lost, or where the user insists."""
        again = self.asked > 0 and number == signal.SIGINT
        self._note(number, frame)
        if self.early:
            raise Stopped(number, STOPPED_EARLY.format(phase=heartbeat.CURRENT.phase))
        if again:
            raise KeyboardInterrupt

    def _listen(self, end: socket.socket) -> None:
        interrupts = 0
        while True:
            try:
                numbers = end.recv(16)
            except OSError:
                return
            if not numbers:
                return
            number = next((number for number in numbers if number in ASKING), 0)
            if number and self.early:
                self.leave(number)
            interrupts += numbers.count(signal.SIGINT)
            if interrupts > 1:
                print("stopped at once; nothing more was saved", file=sys.stderr, flush=True)
                self.discard()
                os._exit(128 + signal.SIGINT)

    def leave(self, number: int) -> None:
        """End this process at once, and all others: no step of it is lost. From any thread: the first one does it."""
        self._leaving.acquire()
        self.tell(number)
        if not rank_of_message():
            print(STOPPED_EARLY.format(phase=heartbeat.CURRENT.phase), file=sys.stderr, flush=True)
        self.discard()
        for folder in list(UNFINISHED):
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)
