"""Tasks of lm-evaluation-harness: on local data, and over ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import UserError
from apt_ds.eval import loading
from tests.support import multiprocess


def records(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf8")


def arc(folder: Path) -> None:
    """A data set of the shape of ARC-Challenge where the harness's reader looks for it."""
    labels = ["A", "B", "C"]
    rows = [
        {"id": str(i), "question": " ".join(f"w{n}" for n in range(i + 1)), "answerKey": labels[i % 3]}
        | {"choices": {"text": ["the cat", "dog", "red house"], "label": labels}}
        for i in range(7)
    ]
    for split in ("train", "validation", "test"):
        records(folder / "ai2_arc" / "ARC-Challenge", split, rows)


@pytest.mark.dist
def test_the_harness_says_the_same_over_ranks_and_sharded_weights(llamas: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: install the extra [eval]")
    arc(tmp_path)
    shutil.copytree(llamas / "dense", tmp_path / "model")
    (alone,) = multiprocess.run(1, "eval_jobs.harness_figures", {"folder": str(tmp_path), "stages": [0]}).values()
    by_stage = multiprocess.run(2, "eval_jobs.harness_figures", {"folder": str(tmp_path), "stages": [0, 3]})
    assert alone["acc_norm"] > 0
    for stage, figures in by_stage.items():
        assert figures == alone, stage


def test_tasks_of_the_harness_run_on_local_data(llamas: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: install the extra [eval]")
    from apt_ds.eval import lm_eval_harness

    arc(tmp_path)
    loaded = loading.load(str(llamas / "pruned"))
    results = lm_eval_harness.run(
        loaded, lm_eval_harness.Request({"arc_challenge": (2, "acc_norm")}, str(tmp_path), limit=5)
    )
    assert results["arc_challenge"]["shots"] == 2 and 0 <= results["arc_challenge"]["acc_norm"] <= 1
    assert "acc_norm*" in lm_eval_harness.render(results)
    request = lm_eval_harness.Request({"hellaswag": (0, "")}, str(tmp_path))
    with pytest.raises(UserError, match=r"data set Rowan/hellaswag is missing .*--data_dir .* folder hellaswag"):
        lm_eval_harness.run(loaded, request)
    with pytest.raises(UserError, match=r"'arc_challange' is not a task .* did you mean arc_challenge"):
        lm_eval_harness.run(loaded, lm_eval_harness.Request({"arc_challange": (None, "")}))
