"""What an engine must not pay for again at every rebuild."""

from __future__ import annotations

from pathlib import Path

from tests.support import multiprocess, tiny


def test_cpu_optimizers_share_one_description_of_the_cpu(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    assert multiprocess.run(1, "rebuild_jobs.descriptions", {"folder": str(tmp_path)}) == 1
