"""The check of a GPU runs to its end on the CPU, with every stage and every row of its tables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.modes import GROUPS
from tests.gpu.summary import PROCESSES, SECTIONS, targets_of
from tests.support import multiprocess
from tests.support.paths import ROOT

CHECK = ROOT / "tests" / "gpu" / "check.sh"
STAGES = ("see", "make", "modes", "tests", "train7", "generate", "profile", "bits7", "offload13", "zero3")


def call(out: Path, timeout: float, **more: str) -> subprocess.CompletedProcess[str]:
    """The command as a dry run."""
    environment = multiprocess.environment(DRY="1", OUT=str(out), PYTHON=sys.executable, **more)
    return subprocess.run(
        ["bash", str(CHECK)], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(3700)
def test_a_dry_run_says_ok_at_every_stage(tmp_path: Path) -> None:
    done = call(tmp_path, timeout=3650)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert done.stdout.rstrip().endswith("all stages said OK")
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf8"))
    names = [name for stage in STAGES for name in PROCESSES.get(stage, (stage,))]
    assert [(stage["name"], stage["state"]) for stage in summary["stages"]] == [(name, "OK") for name in names]
    assert [row["what"] for row in summary["targets"]] == [row.what for row in targets_of(tmp_path)]
    assert len(summary["targets"]) == 10 and {row["verdict"] for row in summary["targets"]} <= {"met", "MISSED"}
    for group, modes in GROUPS.items():
        assert done.stdout.count(f"OK   {group}: ") >= len(modes)
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf8")
    assert "Not measured" not in page and all(f"**{title}**" in page for title, _ in SECTIONS.values())
    rows = re.findall(r"^\| (apt_ds|PEFT)[^|]* \| [\d.]+ \| ", page, re.MULTILINE)
    assert len(rows) == 5 + 3 + 1 + 2


def test_stages_that_exceed_the_budget_are_skipped_and_named(tmp_path: Path) -> None:
    done = call(tmp_path, timeout=120, BUDGET="10", STAGES="see generate")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "== see: SKIPPED" in done.stdout and "== generate: SKIPPED" in done.stdout
    assert done.stdout.rstrip().endswith("not OK: see SKIPPED, generate SKIPPED")
    assert done.stdout.count("| not measured |") == 10 and done.stdout.count("Not measured.") == len(SECTIONS)


def test_the_stages_are_those_of_the_command() -> None:
    text = CHECK.read_text(encoding="utf8")
    assert f"${{STAGES:-{' '.join(STAGES)}}}" in text and f"some of: {' '.join(STAGES)}" in text
    assert os.access(CHECK, os.X_OK)
