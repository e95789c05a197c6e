"""Encoders other than BERT as users run them: the same distilled run in every ZeRO stage, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.resolve import resolve
from apt_ds.data.glue import labels_of
from apt_ds.models import loading
from apt_ds.models.architectures import architecture_of
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.training import run as training_run
from apt_ds.training.datasets import read_data
from tests.support import launcher, multiprocess, tiny
from tests.support.distilled_runs import check_alike
from tests.support.paths import ROOT

COMMON = ["--structure", "adaptive", "--sparsity", "0.4", "--max_steps", "8", "--align", "4", "--mask_step", "0.5"]
COMMON += ["--rank", "2", "--prune_every", "2", "--prune_blocks", "heads,neurons,hidden", "--calibration_steps", "2"]
DISTILLED = ["--pruning", "gradual", "--distill"]
KINDS = {
    "modernbert-answers": ["--teacher", "shrinking", "--gradient_checkpointing"],
    "deberta-classes": ["--teacher", "shrinking", "--gradient_checkpointing"],
    "deberta-answers": [],
    "electra-classes": ["--layer_match", "previous"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Every kind's runs: one process first, then two."""
    folder = tmp_path_factory.mktemp("encoders")
    modes = {kind: [*tiny.save_task(folder / kind, kind), *COMMON, *DISTILLED, *own] for kind, own in KINDS.items()}
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for world, stages in ((1, [(0, False)]), (2, [(2, False), (3, False), (3, True)])):
        given = {"folder": str(folder), "stages": stages, "modes": modes}
        for name, run in multiprocess.run(world, "runs", given).items():
            runs[name.split()[1]].append(run)
    return runs


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("kind", KINDS)
def test_a_distilled_run_is_the_same_in_every_stage(kind: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    check_alike(runs[kind])


METHODS = {
    "modernbert-classes": [*DISTILLED, "--structure", "uniform"],
    "modernbert-answers": DISTILLED,
    "deberta-classes": [*DISTILLED, "--bf16"],
    "distilbert-classes": ["--method", "prune_lora"],
    "electra-answers": ["--method", "lora_prune"],
}


@pytest.mark.parametrize("kind", METHODS)
def test_the_written_model_has_the_score_of_the_evaluated_one(kind: str, tmp_path: Path) -> None:
    """Loaded by plain transformers, the model gives the answers whose score the summary holds."""
    words = [*tiny.save_task(tmp_path / kind, kind), *COMMON, *METHODS[kind], "--output_dir", str(tmp_path / "out")]
    run = resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), *words, "--learning_rate", "1e-2"])
    figures = training_run.train(run)
    assert figures["pruning"]["kept"] <= 0.6
    source = tmp_path / "out" / "model"
    base = loading.find_base(str(tmp_path / kind / "model"), run.data.task, labels_of(run.data.task))
    kernel = architecture_of(base.config).attention(base.config, "sdpa")
    model = AUTO_CLASSES[base.task_type].from_pretrained(source, trust_remote_code=True, attn_implementation=kernel)
    task_evaluator = read_data(run, base).task_evaluator
    assert task_evaluator is not None
    assert task_evaluator.evaluate(model, 3, 0)["score"] == pytest.approx(figures["after"]["score"])


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("kind", ["modernbert-classes", "deberta-answers"])
def test_the_launcher_distils_and_cuts_under_stage_3(kind: str, tmp_path: Path) -> None:
    words = [*tiny.save_task(tmp_path, kind), *COMMON, *DISTILLED, "--output_dir", str(tmp_path / "out")]
    ended = launcher.launch(2, ["--deepspeed", str(ROOT / "ds_configs" / "zero3.json"), *words])
    assert ended.status == 0, ended.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf8"))
    assert summary["pruning"]["kept"] <= 0.6 and (tmp_path / "out" / "model" / "config.json").is_file()
