"""The comparison of methods: what it runs, what it goes on with, what it refuses, what it writes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import worlds
from conftest import ROOT

from apt_ds.compare import Comparison, configure, plan
from apt_ds.results import Trial, markdown, normalize, put

SHARED = Comparison(("lora", "apt", "full"), (0.3, 0.5), (1, 2), 1, 1e-5, "", 10, False)


def test_what_prunes_nothing_runs_once_a_seed(tmp_path: Path) -> None:
    names = [trial.folder.name for trial in plan(SHARED, tmp_path)]
    assert names == [f"{run}-{seed}" for seed in (1, 2) for run in ("lora-0", "apt-30", "apt-50", "full-0")]
    assert plan(SHARED, tmp_path)[1] == Trial("apt", 0.3, 1, tmp_path / "apt-30-1")


def test_varied_options_are_crossed_and_have_columns(tmp_path: Path) -> None:
    varied = replace(SHARED, sparsities=(0.3,), seeds=(1,), vary=(("score", "salience", "random"), ("align", "8")))
    trials = plan(varied, tmp_path)
    assert [trial.folder.name for trial in trials] == [
        f"{run}-1-score={score}-align=8" for run in ("lora-0", "apt-30", "full-0") for score in ("salience", "random")
    ]
    assert len({trial.row for trial in trials}) == 6
    (tmp_path / "ds.json").write_text("{}", encoding="utf8")
    words = ["--deepspeed", str(tmp_path / "ds.json"), "--preset", "quickstart", "--align", "4"]
    made = configure(varied, trials[3], words)
    assert (made.method, made.score, made.align, made.output_dir) == ("apt", "random", 8, str(trials[3].folder))
    rows = [{"method": "apt", "removed": 0.3, "seeds": 1, "score": "random", "held_out_loss_cut": 3.25}]
    assert markdown(rows).splitlines()[::2] == [
        "| method | removed | score | held-out loss, cut |",
        "| apt | 30.0 % | random | 3.250 |",
    ]


def test_rows_are_means_over_seeds_and_ratios_to_lora() -> None:
    lora = {"method": "lora", "removed": 0.0, "step_seconds": 2.0, "train_bytes": 100, "decode_tokens_per_second": 10.0}
    apt = {"method": "apt", "removed": 0.3, "step_seconds": 1.5, "train_bytes": 80, "decode_tokens_per_second": 13.0}
    put(apt, "perplexity", [10.0, 14.0])
    put(apt, "mmlu", [None, 0.3])
    normalize([apt, lora])
    assert (apt["train_time"], apt["train_memory"], apt["inference_speed"]) == (0.75, 0.8, 1.3)
    assert (apt["perplexity"], "mmlu" in apt, "inference_memory" in apt) == (12.0, False, False)
    lines = markdown([apt, lora]).splitlines()
    assert lines[0] == "| method | removed | perplexity | train time | train memory | inference speed |"
    assert lines[2] == "| apt | 30.0 % | 12.0 ± 2.8 | 75.0 % | 80.0 % | 1.30x |"
    assert lines[3] == "| lora | 0.0 % |  | 100.0 % | 100.0 % | 1.00x |"


def launch(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [
        *["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--model_name_or_path", str(folder / "model")],
        *["--data_path", str(folder / "data.json"), "--output_dir", str(folder / "out"), "--max_steps", "2"],
        *["--eval_size", "4", "--max_seq_length", "64", "--per_device_train_batch_size", "2", "--align", "4"],
        *["--calibration_steps", "1", "--methods", "lora,prune_lora", "--sparsity", "0.4", *more],
    ]
    return subprocess.run(
        [sys.executable, str(ROOT / "launchers" / "compare.py"), *words],
        env=worlds.environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.dist
def test_an_interrupted_comparison_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    first = launch(tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    out = tmp_path / "out"
    kept = (out / "lora-0-128" / "summary.json").stat().st_mtime_ns
    shutil.rmtree(out / "prune_lora-40-128")
    second = launch(tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    assert (out / "lora-0-128" / "summary.json").stat().st_mtime_ns == kept
    assert "prune_lora-40-128: train.py" in second.stdout and "lora-0-128: train.py" not in second.stdout.split("\n")[0]
    rows = json.loads((out / "table.json").read_text(encoding="utf8"))
    assert [(row["method"], round(row["removed"], 2)) for row in rows] == [("lora", 0.0), ("prune_lora", 0.4)]
    assert rows[0]["train_time"] == 1.0 and rows[1]["held_out_loss"] > 0
    with (out / "table.csv").open(encoding="utf8") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["lora", "prune_lora"]
    other = launch(tmp_path, "--learning_rate", "0.5")
    assert other.returncode == 2 and "holds a run with --learning_rate 0.0001, not 0.5" in other.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--methods", "lora,magic"], "--methods 'magic' is not allowed: give some of apt, lora"),
        (["--sparsity", "0.3,x"], "--sparsity '0.3,x' is not allowed"),
        (["--sparsity", "1.0"], "--sparsity 1.0 is not allowed"),
        (["--mmlu_data", "nowhere"], "--mmlu_data 'nowhere' is no folder"),
        (["--vary", "outlier", "off", "of"], "--outlier 'of' is not allowed: give one of normalized"),
        (["--vary", "outlir", "off"], "--outlir is no option (did you mean --outlier"),
        (["--vary", "outlier"], "--vary outlier: give the name of an option and its values, nothing twice"),
        (["--vary", "sparsity", "0.3"], "--vary sparsity is not allowed: it is given elsewhere"),
        (["--seeds"], "argument --seeds: expected one argument"),
    ],
)
def test_mistakes_are_one_line(words: list[str], part: str, tmp_path: Path) -> None:
    done = launch(tmp_path, *words)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and part in lines[0]


def test_a_task_is_timed_to_near_the_best_of_full_tuning() -> None:
    """The first evaluation within 97 %, once pruned; the costs are ratios to full fine-tuning."""

    def history(*scores: float, pruned: int) -> list[dict[str, object]]:
        return [
            {"step": 10 * i, "score": score, "seconds": 2.0 * i, "pruned": i >= pruned}
            for i, score in enumerate(scores, start=1)
        ]

    full = {"method": "full", "dev_score": 88.0, "histories": [history(80.0, 90.0, 88.0, pruned=1)]}
    apt = {"method": "apt", "dev_score": 87.0, "histories": [history(89.0, 80.0, 87.3, 88.0, pruned=2)]}
    weak = {"method": "lora_prune", "dev_score": 70.0, "histories": [history(70.0, pruned=1)]}
    normalize([full | {"forward_seconds": 3.0}, weak])  # nothing to divide by zero or a missing figure
    full["forward_seconds"], apt["forward_seconds"] = 3.0, 1.5
    normalize([apt, full, weak])
    assert (full["near_steps"], apt["near_steps"], "near_steps" in weak) == (20, 30, False)
    assert (apt["near_time"], apt["inference_speed"]) == (1.5, 2.0)
    assert "| score | steps to 97 % | time to 97 % |" in markdown([apt, full, weak]).splitlines()[0]
