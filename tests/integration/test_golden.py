"""Seven short runs give the figures that are recorded in `golden.json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import golden


@pytest.mark.slow
@pytest.mark.parametrize("name", golden.RUNS)
def test_a_run_reproduces_its_recorded_figures(name: str, tmp_path: Path) -> None:
    recorded = json.loads(golden.FILE.read_text("utf8"))
    if golden.platform_name() != recorded["platform"]:
        pytest.skip(f"recorded on another platform: {recorded['platform']}")
    assert golden.figures(golden.RUNS[name], tmp_path / "run") == recorded["runs"][name]
