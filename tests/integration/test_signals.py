"""Signals wherever a run may be: while it loads, scores, is judged or is written. Nothing is lost and nothing hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apt_ds.training import checkpoint
from tests.integration.test_faults import lines, strike
from tests.support import multiprocess, tiny

pytestmark = pytest.mark.dist

SIZES = ["--align", "4", "--rank", "2", "--sparsity", "0.4", "--max_steps", "4", "--calibration_steps", "3"]
FISHER = ["--bf16", "--pruning", "posttuning", "--score", "fisher", "--weight_decay", "0.1"]
# evaluations: before, after the cut, after steps 2 and 4, and at the end
RUN = [*SIZES, "--prune_every", "2", "--eval_steps", "2", "--timeout", "20", "--save_steps", "0"]
# name, stage, offload, flags, the micro-batch, two a step, that scoring is ended in, and what it is ended by
SCORED = [
    ("pretuning", 3, False, [*SIZES, "--prune_every", "2"], 3, ["signal", "bad"]),
    ("fisher", 2, False, [*SIZES, *FISHER], 8, ["signal", "bad"]),
    ("taylor", 3, False, [*SIZES, "--method", "prune_lora"], 2, ["signal"]),
]
HALTS = [("load", 1), ("rebuild", 0), ("save", 1), ("write", 0), ("export", 0), ("export", 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout, so that generators matter."""
    place = tmp_path_factory.mktemp("signals")
    tiny.save_model(place / "model", attention_dropout=0.1)
    tiny.save_data(place / "data.json")
    return place


def saved(output: Path) -> list[int]:
    return sorted(step for step, _ in checkpoint.numbered(output))


def test_scoring_that_is_ended_starts_again_on_resume(folder: Path) -> None:
    cases = multiprocess.run(2, "fault_injection.interrupted", {"folder": str(folder), "cases": SCORED})
    for name, runs in cases.items():
        straight, step = runs.pop("straight"), 2 if name == "fisher" else 0
        assert straight["rows"][-1]["kept"] <= 0.6 and straight["rebuilds"] >= 1
        expected = {"signal": f"143 stopped after step {step}: go on", "bad": f"2 after step {step}: 1 steps in a row"}
        for why, run in runs.items():
            assert run["ended"].startswith(expected[why]) and run["steps"] == [step], (name, why, run)
            differing = [key for key in straight if run["outcome"][key] != straight[key]]
            assert not differing, (name, why, differing)


@pytest.mark.parametrize("score", [[], ["--score", "fisher"]])
def test_a_cut_without_a_finite_step_ends_all_ranks(score: list[str], folder: Path) -> None:
    flags = [*SIZES, *score, "--save_steps", "0", "--max_nonfinite_steps", "5"]
    arguments = {"folder": str(folder), "place": "unscored", "stage": 3, "offload": False, "flags": flags}
    ending = multiprocess.run(2, "fault_injection.end_scoring", arguments | {"number": 1, "bad": True})
    assert ending.startswith("2 no step before the cut had a finite loss"), ending


@pytest.mark.parametrize(("where", "victim"), [("load", 1), ("evaluation", 0)])
def test_a_signal_before_the_first_step_ends_all_at_once(where: str, victim: int, folder: Path, tmp_path: Path) -> None:
    """Only one rank gets it."""
    flags = [*RUN, "--output_dir", str(tmp_path / "out")]
    ended = strike(folder, flags, where, victim, signal.SIGTERM, count=1)
    assert ended.statuses == [143, 143], ended.text
    assert "Traceback" not in ended.text and not lines(ended.text)
    assert ended.text.count("stopped before the first step, in ") == 1
    # the same command starts again, without --overwrite_output_dir
    assert not (tmp_path / "out").exists()


def test_a_signal_that_nobody_has_looked_at_ends_the_run_before_its_first_step() -> None:
    """The thread that listens may not get its turn before the step begins."""
    script = "import os, signal\nfrom apt_ds.runtime.signals import StopSignals\n"
    script += "StopSignals._listen = lambda self, end: None\n"
    script += "with StopSignals() as stopping:\n    os.kill(os.getpid(), signal.SIGUSR1)\n    stopping.begin()\n"
    script += "raise SystemExit('it went on')"
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=multiprocess.environment()
    )
    assert ended.returncode == 128 + signal.SIGUSR1 and ended.stderr.startswith("stopped before the first step")


def test_a_signal_in_an_evaluation_saves_and_one_in_the_export_lets_it_end(folder: Path, tmp_path: Path) -> None:
    """An evaluation in the middle, the last one, then the export: the end is that of a run that saw none of it."""
    output = tmp_path / "out"
    flags = [*RUN, "--output_dir", str(output)]
    go_on = [*flags, "--resume_from_checkpoint", "last"]
    for number, (given, count, steps) in enumerate([(flags, 3, [2]), (go_on, 2, [2, 4])]):
        ended = strike(folder, given, "evaluation", 1 - number, signal.SIGTERM, count=count)
        assert ended.statuses == [143, 143] and "Traceback" not in ended.text, ended.text
        assert ended.text.count(f"stopped after step {steps[-1]}: go on with") == 1 and saved(output) == steps
    arguments = {"folder": str(folder), "where": "export", "victim": 0, "number": int(signal.SIGTERM), "flags": go_on}
    assert multiprocess.run(2, "fault_injection.faulty", arguments | {"count": 1}) is True
    assert (output / "summary.json").is_file()
    straight = {"folder": str(folder), "name": "straight", "stage": 3, "offload": False, "flags": RUN}
    multiprocess.run(2, "whole", straight)
    written = [(place / "model" / "model.safetensors").read_bytes() for place in (output, folder / "straight")]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("where", "victim"),
    [("evaluation", 0), *(pytest.param(w, v, marks=pytest.mark.slow) for w, v in HALTS)],
)
def test_a_rank_that_hangs_outside_of_steps_ends_the_others(
    where: str, victim: int, folder: Path, tmp_path: Path
) -> None:
    flags = [*RUN, "--save_steps", "1", "--output_dir", str(tmp_path / "out")]
    ended = strike(folder, flags, where, victim, signal.SIGSTOP, count=1)
    assert ended.statuses[victim] == -signal.SIGKILL and ended.statuses[1 - victim] == 3, ended.text
    mine = lines(ended.text)
    assert len(mine) == 1 and f"rank {victim}" in mine[0].partition(":")[2], ended.text
    assert "sign of life" in mine[0] or "has not answered" in mine[0]
