"""Real processes that form a gloo world, for tests that need several ranks.

`run(world, job, arguments)` starts `world` processes. Each calls the function `job` of `jobs.py`, or of another module
(`score_jobs.taylor`). `run` returns the value of rank 0, which must be JSON. Processes compute on the CPU, also on a
machine with a GPU (`devices.py`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from apt_ds.runtime.collectives import free_port
from tests.support import devices
from tests.support.paths import ROOT


class WorldFailedError(Exception):
    """Some process ended with a status other than 0. `statuses` has the status of each, `text` all that they wrote."""

    def __init__(self, statuses: list[int | None], text: str) -> None:
        super().__init__(f"statuses {statuses}\n{text[-4000:]}")
        self.statuses, self.text = statuses, text


PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment(gpu: bool = False, **more: str) -> dict[str, str]:
    """This process's environment, with the package and the tests importable and one thread a process.

    The place of this process in a world is left out: a test may have given it one.

    Args:
        gpu: the processes may see GPUs. By default they compute on the CPU.
        more: variables to add.
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    inherited = {name: value for name, value in os.environ.items() if name not in PLACE}
    inherited = devices.with_gpus(inherited) if gpu else devices.without_gpus(inherited)
    return inherited | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


class Forked:
    """A process that the zygote has forked, with the part of `subprocess.Popen` that tests need."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self, timeout: float | None = None) -> int:
        return ZYGOTE.wait(self.pid, timeout)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Zygote:
    """A process that has imported everything and forks ranks: importing takes seconds of every start.

    It has a single thread and has run nothing, so that its children behave like new processes.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._ended: dict[int, int] = {}

    def start(self, call: str, env: dict[str, str], log: Path) -> Forked:
        if self._process is None or self._process.poll() is not None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            command = [sys.executable, "-m", "tests.support.multiprocess", "zygote"]
            # OpenBLAS (numpy, scipy) and jemalloc (pyarrow) start threads when they are imported
            single = environment(OPENBLAS_NUM_THREADS="1", JE_ARROW_MALLOC_CONF="background_thread:false")
            self._process = subprocess.Popen(command, env=single, **pipes)
        assert self._process.stdin
        self._process.stdin.write(json.dumps([call, env, str(log)]) + "\n")
        self._process.stdin.flush()
        return Forked(self._next_process("started"))

    def wait(self, pid: int, timeout: float | None) -> int:
        end = time.monotonic() + (timeout or 1e9)
        while pid not in self._ended:
            assert self._process and self._process.stdout
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired("a rank", timeout or 0)
            self._next_process("ended")
        return self._ended.pop(pid)

    def _next_process(self, event: str) -> int:
        """The process of the zygote's next line about `event`. Reads are unbuffered: `select` must see every line."""
        assert self._process and self._process.stdout
        while True:
            line = b""
            while not line.endswith(b"\n"):
                read = os.read(self._process.stdout.fileno(), 1)
                assert read, "the zygote has ended: see its traceback on stderr"
                line += read
            if not line.startswith(b"zygote "):
                continue
            _, reported, pid, status = line.decode().split()
            if reported == "ended":
                self._ended[int(pid)] = int(status)
            if reported == event:
                return int(pid)


ZYGOTE = Zygote()


def start(call: str, env: dict[str, str], log: Path, fresh: bool) -> Forked | subprocess.Popen[bytes]:
    """Start a process that does `call`. Its output goes to `log`."""
    if not fresh:
        return ZYGOTE.start(call, env, log)
    with log.open("w") as file:
        command = [sys.executable, "-m", "tests.support.multiprocess", call]
        return subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)


class World(NamedTuple):
    """How a world ended: the status of each rank, all that they wrote, and what rank 0 returned if all succeeded."""

    statuses: list[int | None]
    text: str
    value: Any = None


def run(
    world: int, job: str, arguments: dict[str, Any], timeout: float = 420, fresh: bool = False, gpu: bool = False
) -> Any:
    """Call a job on every rank of a new world.

    Args:
        world: number of ranks.
        job: a function of `jobs.py`, or `<module>.<function>` of another module of this folder.
        arguments: its arguments by name, as JSON.
        timeout: seconds.
        fresh: start new processes instead of forks of the zygote. Needed where the environment matters to imports.
        gpu: the processes may see GPUs. They are new processes: a fork cannot use a GPU that its parent has seen.

    Returns:
        The value of rank 0.

    Raises:
        WorldFailedError: a rank ended with another status than 0, or the time is over.
    """
    ended = attempt(world, job, arguments, timeout, fresh, gpu)
    if any(ended.statuses):
        raise WorldFailedError(ended.statuses, ended.text)
    return ended.value


def attempt(
    world: int, job: str, arguments: dict[str, Any], timeout: float = 420, fresh: bool = False, gpu: bool = False
) -> World:
    """The same for a world that may fail: how it ended."""
    port = str(free_port())
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        call = json.dumps({"job": job, "arguments": arguments, "result": str(result)})
        logs = [Path(folder) / f"log{rank}" for rank in range(world)]
        processes = []
        for rank, log in enumerate(logs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            processes.append(start(call, environment(gpu, **place), log, fresh or gpu))
        end = time.monotonic() + timeout
        try:
            statuses: list[int | None] = [process.wait(max(0.1, end - time.monotonic())) for process in processes]
        except subprocess.TimeoutExpired:
            for process in processes:
                with suppress(ProcessLookupError):
                    process.kill()
            statuses = [-signal.SIGALRM for _ in processes]
        text = "".join(log.read_text(encoding="utf8", errors="replace") for log in logs)
        # a world that is killed while it forms may leave shared memory
        left = list(Path("/dev/shm").glob(f"*_{port}_*"))
        for path in left:
            path.unlink()
        if any(statuses):
            return World(statuses, text)
        assert not left, f"shared memory outlived its world: {left}"
        return World(statuses, text, json.loads(result.read_text(encoding="utf8")))


def _child(given: str) -> None:
    call = json.loads(given)
    module, _, name = call["job"].rpartition(".")
    value = getattr(importlib.import_module(f"tests.support.{module or 'jobs'}"), name)(**call["arguments"])
    if os.environ["RANK"] == "0":
        Path(call["result"]).write_text(json.dumps(value), encoding="utf8")
    from apt_ds.runtime import collectives

    collectives.shut_down()


def _zygote() -> None:
    """Fork a process for every line of stdin, print when it starts and ends, and end with stdin."""
    from apt_ds.eval import commands  # noqa: F401
    from apt_ds.runtime import zero
    from tests.support import data_jobs, fault_injection, mistake_jobs, sharding_jobs  # noqa: F401

    zero.describe_cpu_once()
    importlib.import_module("cpuinfo").get_cpu_info()
    # garbage collections of the forks then skip the million objects of libraries
    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose a thread"
    children: set[int] = set()
    while True:
        ready = select.select([sys.stdin], [], [], 0.02 if children else None)[0]
        line = sys.stdin.readline() if ready else ""
        if ready and not line:
            break
        if line:
            pid = os.fork()
            if not pid:
                _begin(*json.loads(line))
            children.add(pid)
            print("zygote started", pid, 0, flush=True)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            children.discard(pid)
            print("zygote ended", pid, os.waitstatus_to_exitcode(status), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _begin(call: str, env: dict[str, str], log: str) -> None:
    """Give a forked process its environment and its output, do its job, and end it."""
    os.environ.clear()
    os.environ.update(env)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.dup2(handle, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    exit_status.main(lambda: _child(call))
    exit_status.leave(0)


if __name__ == "__main__":
    from apt_ds.runtime import exit_status

    if sys.argv[1] == "zygote":
        _zygote()
    else:
        exit_status.main(lambda: _child(sys.argv[1]))
