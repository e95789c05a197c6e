"""Faults at random moments, one after the other: after each the run goes on, and its end is that of the run never hit.

`pytest tests/integration/test_kills.py -m slow -s` prints the table.
APT_DS_KILLS is the number of faults, 100 if unset.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from apt_ds.training import checkpoint
from tests.support import multiprocess, tiny
from tests.support.small_disk import small_disk

pytestmark = [pytest.mark.slow, pytest.mark.dist, pytest.mark.timeout(3600)]

STEPS, PHASE, LENGTH = 32, 16, 14  # steps of a run, those that cut and grow, faults in one at most
FLAGS = [
    *("--pruning", "gradual", "--structure", "adaptive", "--max_steps", str(STEPS), "--sparsity", "0.4"),
    *("--align", "4", "--mask_step", "0.5", "--rank", "2", "--prune_every", "2", "--pruning_phase", str(PHASE / STEPS)),
    *("--save_steps", "1", "--save_total_limit", "3", "--eval_steps", "3", "--timeout", "10"),
]


class Spread(NamedTuple):
    """How the runs of a chain are spread."""

    name: str
    ranks: int
    stage: int
    offload: bool
    flags: tuple[str, ...] = ()


SPREADS = (
    Spread("ZeRO-3", 2, 3, False),
    Spread("ZeRO-2 bf16", 2, 2, False, ("--bf16",)),
    Spread("ZeRO-3 offload", 2, 3, True),
    Spread("ZeRO-2, 3 ranks", 3, 2, False),
)


class Fault(NamedTuple):
    """where: the phase it strikes in (see `fault_injection.PHASES`); number: its signal, 0 for a full disk."""

    where: str
    number: int


PHASES = ("step", "evaluation", "rebuild", "save", "write", "export")
SIGNALS = {signal.SIGKILL: "SIGKILL", signal.SIGSTOP: "SIGSTOP", signal.SIGTERM: "SIGTERM", 0: "disk full"}
# most faults are kills; a rank that is stopped takes the others `--timeout`
FAULTS = [
    Fault(where, number) for where in PHASES for number in (*[signal.SIGKILL] * 3, signal.SIGSTOP, signal.SIGTERM)
]
DISKS = [Fault("save", 0), Fault("save", 0), Fault("export", 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kills")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return place


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB of its own, where one may be mounted."""
    with small_disk(tmp_path / "disk", 24 << 20, required=False) as place:
        yield place


def whole(folder: Path, spread: Spread, flags: list[str]) -> dict[str, Any]:
    arguments = {"folder": str(folder), "name": "unused", "stage": spread.stage, "offload": spread.offload}
    return multiprocess.run(spread.ranks, "whole", arguments | {"flags": [*flags, *spread.flags]})


def possible(faults: list[Fault], step: int, struck: int) -> list[Fault]:
    """Those that may still come after `step`; the export, which needs all other steps, comes late in a chain."""
    phases = set(PHASES) if step < PHASE - 2 else set(PHASES) - {"rebuild"}
    if step == STEPS:
        phases = {"evaluation", "export"}
    elif struck < LENGTH - 3:
        phases -= {"export"}
    return [fault for fault in faults if fault.where in phases]


def strike(folder: Path, spread: Spread, flags: list[str], fault: Fault, draw: random.Random) -> bool:
    """Let a fault happen in a run; False where the run ended before it. All ranks end in time and say why."""
    victim = 0 if fault.where == "write" or not fault.number else draw.randrange(spread.ranks)
    # a step has two micro-batches; at the start of others something is under way for some milliseconds
    count = draw.randint(1, {"step": 5, "rebuild": 1, "export": 1}.get(fault.where, 2))
    delay = draw.choice([0, 0.002, 0.02])
    arguments = {"folder": str(folder), "where": fault.where, "victim": victim, "number": int(fault.number)}
    arguments |= {"flags": [*flags, *spread.flags], "stage": spread.stage, "offload": spread.offload}
    try:
        came = multiprocess.run(
            spread.ranks, "fault_injection.faulty", arguments | {"count": count, "delay": delay}, timeout=150
        )
    except multiprocess.WorldFailedError as ended:
        case = (spread, fault, arguments, ended.text)
        for rank, status in enumerate(ended.statuses):
            assert status in allowed(fault, rank == victim), (rank, status, case)
        endings = [line for line in ended.text.splitlines() if line.startswith(("error: ", "stopped "))]
        assert len(endings) <= spread.ranks and "Traceback" not in ended.text, case
        assert endings or 0 in ended.statuses, case
        return True
    # who is asked to stop while the model is written finishes; what strikes late in there may miss the run
    assert not came or fault.number == signal.SIGTERM or fault.where == "export", arguments
    return bool(came) and fault.number == signal.SIGTERM


def allowed(fault: Fault, victim: bool) -> set[int]:
    """Statuses a rank may end with."""
    if fault.number == signal.SIGTERM:
        return {143}
    if victim:
        return {-signal.SIGKILL if fault.number else 2}
    # at the end the first rank works alone
    return {3 if fault.number else 2, *([0] if fault.where == "export" else [])}


def test_nothing_is_lost_and_nothing_hangs(folder: Path, disk: Path) -> None:
    wanted, tried, survived = int(os.environ.get("APT_DS_KILLS", "100")), Counter[Fault](), Counter[Fault]()
    faults, straight = [*FAULTS, *(DISKS if disk.is_mount() else [])], dict[Spread, dict[str, Any]]()
    chain = 0
    while survived.total() < wanted:
        draw, output, spread = random.Random(chain), disk / f"chain{chain}", SPREADS[chain % len(SPREADS)]
        if spread not in straight:
            straight[spread] = whole(folder, spread, [*FLAGS, "--output_dir", str(folder / "straight")])
            assert straight[spread]["rows"][-1]["kept"] <= 0.61 and straight[spread]["rebuilds"] >= 4
        flags, struck = [*FLAGS, "--output_dir", str(output)], list[Fault]()
        while len(struck) < LENGTH and survived.total() + len(struck) < wanted:
            step = max([step for step, _ in checkpoint.numbered(output)], default=0)
            fault = draw.choice(possible(faults, step, len(struck)))
            go_on = ["--resume_from_checkpoint", "last"] if step else []
            hit = strike(folder, spread, [*flags, *go_on], fault, draw)
            (disk / "ballast").unlink(missing_ok=True)
            if not hit:
                break
            tried[fault] += 1
            struck.append(fault)
            print(f"{spread.name}: {SIGNALS[fault.number]} in {fault.where}, after step {step}", flush=True)
        go_on = ["--resume_from_checkpoint", "last"] if checkpoint.numbered(output) else []
        faulty = whole(folder, spread, [*flags, *go_on])
        differing = [key for key in faulty if faulty[key] != straight[spread][key]]
        assert not differing, (chain, spread, differing, struck)
        assert not list(output.glob("*.tmp"))
        survived.update(struck)
        shutil.rmtree(output)
        chain += 1
    print(table(tried, survived))


def table(tried: Counter[Fault], survived: Counter[Fault]) -> str:
    """Survived / tried, by phase and fault."""
    rows = [["", *SIGNALS.values()], ["---"] * (1 + len(SIGNALS))]
    for where in PHASES:
        cells = [Fault(where, number) for number in SIGNALS]
        rows.append([where, *(f"{survived[c]} / {tried[c]}" if tried[c] else "" for c in cells)])
    rows.append(["all", f"{survived.total()} / {tried.total()}", *[""] * (len(SIGNALS) - 1)])
    return "\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)
