"""Real processes that form a gloo world, for tests that need several ranks.

`run(world, job, arguments)` starts `world` processes of this file; each joins the group and calls the function
`job` of `jobs.py`, and rank 0's return value (JSON) comes back. Importing torch and deepspeed takes seconds, so a
job does many things in one world.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class WorldFailed(Exception):
    """Some process ended with a status other than 0; carries the statuses and all they wrote."""

    def __init__(self, statuses: list[int | None], text: str) -> None:
        super().__init__(f"statuses {statuses}\n{text[-4000:]}")
        self.statuses, self.text = statuses, text


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with the package and the tests importable and one thread a process."""
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | more


def run(world: int, job: str, arguments: dict[str, Any], timeout: float = 420) -> Any:
    """Call `jobs.<job>(**arguments)` on every rank of a new world; rank 0's result."""
    port = str(free_port())
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        call = json.dumps({"job": job, "arguments": arguments, "result": str(result)})
        processes, logs = [], []
        for rank in range(world):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
            log = (Path(folder) / f"log{rank}").open("w+")
            logs.append(log)
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(HERE / "worlds.py"), call],
                    env=environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **place),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        try:
            statuses: list[int | None] = [process.wait(timeout) for process in processes]
        except subprocess.TimeoutExpired:
            for process in processes:
                process.kill()
            statuses = [process.wait() for process in processes]
        text = ""
        for log in logs:
            log.seek(0)
            text += log.read()
            log.close()
        # a world killed while it forms may leave its shared memory
        left = list(Path("/dev/shm").glob(f"*_{port}_*"))
        for path in left:
            path.unlink()
        if any(statuses):
            raise WorldFailed(statuses, text)
        assert not left, f"shared memory outlived its world: {left}"
        return json.loads(result.read_text(encoding="utf8"))


def _child() -> None:
    call = json.loads(sys.argv[1])
    import jobs

    value = getattr(jobs, call["job"])(**call["arguments"])
    if os.environ["RANK"] == "0":
        Path(call["result"]).write_text(json.dumps(value), encoding="utf8")
    from apt_ds import dist

    dist.shut_down()


if __name__ == "__main__":
    from apt_ds import command

    command.main(_child)
