"""Two hosts on one machine: network namespaces with an address each, joined by a virtual cable that can be cut.

APT_DS_CABLES is how often the cable is cut in one run, 3 times if unset.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apt_ds.training import checkpoint
from tests.support import multiprocess, tiny
from tests.support.launcher import start
from tests.support.paths import ROOT

pytestmark = pytest.mark.dist
PORT = "29577"  # both hosts are new: nothing listens there
# cuts and rank growth after steps 2 and 4
FLAGS = [
    *("--pruning", "gradual", "--structure", "adaptive", "--sparsity", "0.4", "--align", "4", "--mask_step", "0.5"),
    *("--rank", "2", "--prune_every", "2", "--eval_size", "4", "--report", "false"),
    *("--run_report", "false"),
    *("--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--max_seq_length", "64"),
    *("--deepspeed", "ds_configs/zero3.json"),
]
STEPS, PHASE = 8, 4


class Hosts:
    """Two network namespaces; `cable` takes the link between them down or up."""

    def __init__(self, names: tuple[str, str]) -> None:
        self.names, self.addresses = names, ("10.213.7.1", "10.213.7.2")

    def join(self) -> None:
        """Make both, each with one end of a cable."""
        for name in self.names:
            ip("netns", "add", name)
        ends = [f"v{name}" for name in self.names]
        ip("link", "add", ends[0], "netns", self.names[0], "type", "veth", "peer", ends[1], "netns", self.names[1])
        for name, end, address in zip(self.names, ends, self.addresses, strict=True):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
        self.cable("up")

    def cable(self, state: str) -> None:
        """'up' or 'down'."""
        for name in self.names:
            ip("-n", name, "link", "set", f"v{name}", state)

    def leave(self) -> None:
        """Take both away."""
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def start(self, hostfile: Path, words: list[str]) -> list[subprocess.Popen[str]]:
        """One launcher on each host, without ssh."""
        return [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, *launcher(), "--hostfile", str(hostfile), "--no_ssh"),
                    *("--node_rank", str(number), "--master_addr", self.addresses[0], "--master_port", PORT),
                    *("launchers/train.py", *words),
                ],
                cwd=ROOT,
                env=multiprocess.environment(GLOO_SOCKET_IFNAME=f"v{name}"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for number, name in enumerate(self.names)
        ]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def launcher() -> list[str]:
    command = Path(sys.executable).with_name("deepspeed")
    if not command.is_file():
        pytest.skip("the deepspeed command is not next to this python")
    return [str(command), "--log_level", "warning"]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("two hosts on one machine need root and the command ip (iproute2)")
    hosts = Hosts((f"a{os.getpid()}", f"b{os.getpid()}"))
    try:
        hosts.join()
    except subprocess.CalledProcessError as error:
        hosts.leave()
        pytest.skip(f"this machine allows no network namespaces: {error.stderr.strip()}")
    yield hosts
    hosts.leave()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("nodes")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return place


@pytest.fixture
def hostfile(hosts: Hosts, tmp_path: Path) -> Path:
    path = tmp_path / "hostfile"
    path.write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
    return path


def words(folder: Path, output: Path, *more: str, steps: int = STEPS) -> list[str]:
    place = ["--model_name_or_path", str(folder / "model"), "--data_path", str(folder / "data.json")]
    length = ["--max_steps", str(steps), "--pruning_phase", str(PHASE / steps)]
    return [*FLAGS, *place, "--output_dir", str(output), *length, *more]


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def ended(processes: list[subprocess.Popen[str]], timeout: float) -> list[tuple[int, str]]:
    """(status, stderr) of every process; none outlives this."""
    end, endings = time.monotonic() + timeout, []
    try:
        for process in processes:
            err = process.communicate(timeout=max(1.0, end - time.monotonic()))[1]
            endings.append((process.returncode, err))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return endings


def alone(folder: Path, output: Path, steps: int = STEPS) -> list[dict[str, Any]]:
    """The same run on one host with two ranks."""
    ended = start(2, words(folder, output, "--save_steps", "0", steps=steps))
    assert ended.status == 0, ended.err
    return rows(output)


def alike(lines: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Check that the decisions are the same, and the losses up to rounding."""
    assert expected[-1]["kept"] <= 0.61 and expected[-1]["ranks"]["max"] > 2
    for key in ("step", "kept", "ranks"):
        assert [row[key] for row in lines] == [row[key] for row in expected], key
    assert np.allclose([row["loss"] for row in lines], [row["loss"] for row in expected], rtol=1e-5)


def test_two_hosts_do_what_one_does(hosts: Hosts, hostfile: Path, folder: Path, tmp_path: Path) -> None:
    both = ended(hosts.start(hostfile, words(folder, tmp_path / "two", "--save_steps", "0")), timeout=240)
    assert [status for status, _ in both] == [0, 0], both
    alike(rows(tmp_path / "two"), alone(folder, tmp_path / "one"))


@pytest.mark.slow
def test_a_cable_that_is_cut_ends_all_ranks_and_the_run_goes_on(
    hosts: Hosts, hostfile: Path, folder: Path, tmp_path: Path
) -> None:
    """The cable is cut several times, at random moments. The resumed run equals one without cuts."""
    output, cuts, draw = tmp_path / "two", int(os.environ.get("APT_DS_CABLES", "3")), random.Random(0)
    steps = 20 * cuts
    flags, go_on = words(folder, output, "--save_steps", "1", "--timeout", "20", steps=steps), []
    for number in range(cuts):
        running, saved = hosts.start(hostfile, [*flags, *go_on]), newest(output)
        end = time.monotonic() + 240
        while newest(output) < saved + 2 and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.2))
        hosts.cable("down")
        start = time.monotonic()
        both = ended(running, timeout=120)
        assert time.monotonic() - start < 60, "20 seconds, and what the launchers take"
        for rank, (status, err) in enumerate(both):
            errors = [line for line in err.splitlines() if line.startswith("error: ")]
            assert status != 0 and len(errors) == 1 and errors[0].startswith(f"error: rank {rank}, in step"), err
            assert f"rank {1 - rank}" in errors[0] and "--resume_from_checkpoint last" in errors[0]
            assert "Traceback" not in err
        print(f"cable {number + 1} of {cuts} cut after step {newest(output)}: both ended", flush=True)
        assert newest(output) < steps
        hosts.cable("up")
        go_on = ["--resume_from_checkpoint", "last"]
    both = ended(hosts.start(hostfile, [*flags, *go_on]), timeout=240)
    assert [status for status, _ in both] == [0, 0], both
    alike(rows(output), alone(folder, tmp_path / "one", steps))


def newest(output: Path) -> int:
    """Step of the newest checkpoint, 0 without one."""
    return max((step for step, _ in checkpoint.numbered(output)), default=0)
