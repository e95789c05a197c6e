"""The profile accounts for all of a step, and for nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from apt_ds.runtime import profiler
from apt_ds.runtime.profiler import NOW, OTHER, PHASES, seen, timed
from tests.support import multiprocess, tiny

CPU = torch.device("cpu")


class Clock:
    """Stands for the machine's, which other work makes jump."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(time, "perf_counter", lambda: CLOCK.now)
    NOW.start(CPU, on=True)
    yield
    NOW.start(CPU, on=False)


@timed("gather")
def gather() -> None:
    CLOCK.sleep(4)


@timed("forward")
def forward() -> None:
    CLOCK.sleep(1)
    gather()
    CLOCK.sleep(1)


@timed(OTHER)
def step() -> None:
    forward()
    CLOCK.sleep(0.5)


def test_time_goes_to_the_innermost_phase(recording: None) -> None:
    gather()  # outside of a step
    for _ in range(3):
        step()
        with NOW.phase("search"):
            CLOCK.sleep(3)
        CLOCK.sleep(7)
    dense = NOW.summary()["dense"]
    spent = {name: seconds for name, seconds in dense["seconds"].items() if seconds}
    assert spent == {"forward": 2, "gather": 4, OTHER: 0.5, "search": 3}
    assert sum(dense["share"].values()) == pytest.approx(1) and dense["steps"]["counted"] == 2


def test_a_cut_starts_afresh(recording: None) -> None:
    step()
    NOW.cut()
    assert set(NOW.summary()) == {"dense"}
    step()
    NOW.cut()
    step()
    assert {when: timing["steps"]["counted"] for when, timing in NOW.summary().items()} == {"dense": 1, "cut": 1}
    assert "where a step goes" in profiler.render(NOW.summary())


def test_off_nothing_is_kept_or_wrapped() -> None:
    NOW.start(CPU, on=False)
    step()
    assert NOW.summary() == {} and seen("gather", step) is step


@pytest.mark.dist
def test_a_run_tells_where_its_steps_go(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    runs = multiprocess.run(
        2,
        "step_jobs.profiled",
        {"folder": str(tmp_path), "stages": [(0, False), (1, False), (2, False), (3, False)]},
    )
    for stage, run in runs.items():
        assert set(run["profile"]) == {"dense", "cut"}
        seconds = run["profile"]["dense"]["seconds"]
        assert set(seconds) == set(PHASES)
        # stage 0 has nothing to gather
        absent = {name for name, value in seconds.items() if not value} - ({"gather"} if stage == "0" else set())
        assert not absent, (stage, seconds)
        assert sum(run["spent"]) == pytest.approx(sum(run["steps"]), rel=0.3), stage
        assert run["losses"] == run["unprofiled"]["losses"], stage
