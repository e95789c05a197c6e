"""What engines must not pay for: again at every rebuild, or at all."""

from __future__ import annotations

from pathlib import Path

from tests.support import multiprocess, tiny


def test_engines_describe_the_cpu_once_and_load_no_compiler(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    costs = multiprocess.run(1, "rebuild_jobs.engine_costs", {"folder": str(tmp_path)})
    assert costs == {"descriptions": 1, "compiler": False}
