"""The benchmark runs every variant and writes its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import worlds

from apt_ds.benchmark import VARIANTS, render

pytest.importorskip("peft", reason="the benchmark compares with PEFT: install the extra [dev]")


@pytest.mark.dist
def test_every_variant_is_measured(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model")
    data = tiny.save_data(tmp_path / "data.json", count=200)
    figures = tmp_path / "figures.json"
    call = [
        *[sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"],
        *["--master_port", str(worlds.free_port()), str(worlds.HERE.parent / "launchers" / "benchmark.py")],
        *["--deepspeed", str(worlds.HERE.parent / "ds_configs" / "zero3.json"), "--rounds", "1", "--steps", "2"],
        *["--model_name_or_path", str(model), "--data_path", str(data), "--per_device_train_batch_size", "1"],
        *["--max_seq_length", "32", "--align", "4", "--bf16", "--json", str(figures)],
    ]
    done = subprocess.run(call, env=worlds.environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(figures.read_text(encoding="utf8"))
    for name in ("step_seconds", "tokens_per_second", "peak_memory_bytes"):
        assert set(found[name]) == set(VARIANTS) and min(found[name].values()) > 0
    assert set(found["rebuild_seconds"]) == {"cut30", "cut50"}
    assert "time/lora" in done.stdout


def test_the_table_says_which_targets_are_missed() -> None:
    step = {"lora": 1.0, "dense": 1.06, "cut30": 0.79, "cut50": 0.66}
    figures = {
        "step_seconds": step,
        "tokens_per_second": step,
        "peak_memory_bytes": step,
        "rebuild_seconds": {"cut30": 2.0, "cut50": 2.0},
    }
    text = render(figures)
    assert "dense: 1.060 of LoRA's time, target at most 1.05: MISSED" in text
    assert "cut30: 0.790 of LoRA's time, target at most 0.8: met" in text
    assert "rebuild to cut30: 2.53 training steps, target at most 3: met" in text
    assert "rebuild to cut50: 3.03 training steps, target at most 3: MISSED" in text
