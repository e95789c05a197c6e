"""Faults at random moments, one after the other: after each the run goes on, and its end is that of the run never hit.

`pytest tests/test_kills.py -m slow -s` prints the table; APT_DS_KILLS is the number of faults, 100 if unset.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import worlds

from apt_ds import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.dist]

STEPS, PHASE, LENGTH = 32, 16, 14  # steps of a run, those that cut and grow, faults in one at most
FLAGS = [
    *("--pruning", "gradual", "--structure", "adaptive", "--max_steps", str(STEPS), "--sparsity", "0.4"),
    *("--align", "4", "--mask_step", "0.5", "--rank", "2", "--adjust_every", "2", "--prune_ratio", str(PHASE / STEPS)),
    *("--save_steps", "1", "--save_total_limit", "3", "--timeout", "10"),
]


class Fault(NamedTuple):
    """where: the phase it strikes in (see `doom.PHASES`); number: its signal, 0 for a full disk."""

    name: str
    where: str
    number: int


KILLS = [Fault(f"SIGKILL in {where}", where, signal.SIGKILL) for where in ("step", "rebuild", "save", "write")]
STOPS = [Fault("SIGSTOP", "step", signal.SIGSTOP), Fault("SIGTERM", "step", signal.SIGTERM)]
DISK = Fault("disk full in a save", "save", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kills")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return place


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    mounted = bool(shutil.which("mount")) and not subprocess.run(words, capture_output=True).returncode
    yield place
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def whole(folder: Path, flags: list[str]) -> dict[str, Any]:
    arguments = {"folder": str(folder), "name": "unused", "stage": 3, "offload": False, "flags": flags}
    return worlds.run(2, "whole", arguments)


def strike(folder: Path, flags: list[str], fault: Fault, draw: random.Random) -> bool:
    """Let a fault happen in a run; False where the run ended before it. All ranks end in time and say why."""
    victim = 0 if fault.where == "write" or not fault.number else draw.randrange(2)
    # a step has two micro-batches; at the start of others something is under way for some milliseconds
    count, delay = draw.randint(1, 5) if fault.where == "step" else draw.randint(1, 2), draw.choice([0, 0.002, 0.02])
    arguments = {"folder": str(folder), "where": fault.where, "victim": victim, "number": int(fault.number)}
    arguments |= {"flags": flags, "count": 1 if fault.where == "rebuild" else count, "delay": delay}
    try:
        worlds.run(2, "doom.faulty", arguments, timeout=150)
    except worlds.WorldFailed as ended:
        other = {signal.SIGTERM: [143, 143], 0: [2, 2]}.get(fault.number)
        expected = other or [-signal.SIGKILL if rank == victim else 3 for rank in range(2)]
        assert ended.statuses == expected, (fault, arguments, ended.text)
        told = [line for line in ended.text.splitlines() if line.startswith(("error: ", "stopped after"))]
        assert 1 <= len(told) <= 2 and "Traceback" not in ended.text, (fault, ended.text)
        return True
    return False


def test_nothing_is_lost_and_nothing_hangs(folder: Path, disk: Path) -> None:
    wanted, tried, survived = int(os.environ.get("APT_DS_KILLS", "100")), Counter[str](), Counter[str]()
    faults = [*KILLS, *KILLS, *STOPS, *([DISK] if disk.is_mount() else [])]
    straight = whole(folder, [*FLAGS, "--output_dir", str(folder / "straight")])
    assert straight["rows"][-1]["kept"] <= 0.61 and straight["rebuilds"] >= 4
    chain = 0
    while sum(survived.values()) < wanted:
        draw, output = random.Random(chain), disk / f"chain{chain}"
        flags, struck = [*FLAGS, "--output_dir", str(output)], []
        while len(struck) < LENGTH and sum(survived.values()) + len(struck) < wanted:
            steps = [step for step, _ in checkpoint.numbered(output)]
            fault = draw.choice([f for f in faults if f.where != "rebuild" or max(steps, default=0) < PHASE - 2])
            go_on = ["--resume_from_checkpoint", "last"] if steps else []
            if not strike(folder, [*flags, *go_on], fault, draw):
                break
            tried[fault.name] += 1
            struck.append(fault)
            (disk / "ballast").unlink(missing_ok=True)
            print(f"chain {chain}: {fault.name}, after step {max(steps, default=0)}", flush=True)
        go_on = ["--resume_from_checkpoint", "last"] if checkpoint.numbered(output) else []
        found = whole(folder, [*flags, *go_on])
        differing = [key for key in straight if found[key] != straight[key]]
        assert not differing, (chain, differing, struck)
        assert not list(output.glob("*.tmp"))
        survived.update(fault.name for fault in struck)
        shutil.rmtree(output)
        chain += 1
    rows = [(name, tried[name], survived[name]) for name in dict.fromkeys(fault.name for fault in faults)]
    print("\n| fault | tried | survived |\n|---|---|---|")
    for row in [*rows, ("all", sum(tried.values()), sum(survived.values()))]:
        print("| {} | {} | {} |".format(*row))
