"""The baselines: their options, their cuts, and their runs in every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from apt_ds.config.errors import UserError
from apt_ds.config.methods import METHODS
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import block_slices
from apt_ds.pruning import surgery
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import Plan
from tests.support import multiprocess, tiny

CPU = torch.device("cpu")
SIZES = ["--align", "4", "--sparsity", "0.4", "--max_steps", "8", "--calibration_steps", "3"]


def test_a_cut_weighs_what_stays() -> None:
    model = tiny.model()
    anatomy = anatomy_of(model.config)
    keep, scale = np.ones(anatomy.sizes.total(), dtype=bool), np.linspace(0.5, 1.5, anatomy.sizes.total())
    where = dict(block_slices(anatomy.sizes))[1]
    keep[where.start : where.start + 16] = False
    down = model.get_submodule(anatomy.sites[1].consumer)
    x, before = torch.randn(3, 48), down.weight.detach().clone()
    surgery.apply_plan(model, anatomy, Plan(keep=keep, scale=scale), None, torch.Generator())
    factors = torch.from_numpy(scale[where][16:]).float()
    assert torch.allclose(down(x[:, 16:]), linear(x[:, 16:] * factors, before[:, 16:]), atol=1e-5)


def test_a_method_is_a_set_of_options(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{}", encoding="utf8")
    words = ["--deepspeed", str(tmp_path / "ds.json"), "--preset", "llama2-7b-alpaca"]
    for method, meaning in METHODS.items():
        run = resolve([*words, "--method", method])
        assert {name: run.flag(name) for name in meaning} == meaning
    with pytest.raises(UserError, match="--pruning gradual contradicts --method lora"):
        resolve([*words, "--method", "lora", "--pruning", "gradual"])
    with pytest.raises(UserError, match="--pruning gradual does not support --score fisher"):
        resolve([*words, "--pruning", "gradual", "--score", "fisher"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("methods")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return place


@pytest.mark.dist
def test_every_method_is_the_same_run_in_every_stage(folder: Path) -> None:
    modes = {method: ["--method", method, *SIZES] for method in METHODS if method != "apt"}
    modes["flap"] += ["--output_dir", str(folder / "flap")]
    stages = {1: [(0, False), (3, False)], 2: [(2, False), (3, False)]}
    runs_of: dict[str, list[dict[str, Any]]] = {method: [] for method in modes}
    for world, own in stages.items():
        # four rows a step: two micro-batches of one process, or one of each of two
        batch = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", str(2 // world)]
        cases = {method: [*flags, *batch] for method, flags in modes.items()}
        for name, run in multiprocess.run(
            world, "runs", {"folder": str(folder), "stages": own, "modes": cases}
        ).items():
            runs_of[name.split()[1]].append(run)
    for method, (first, *others) in runs_of.items():
        for other in others:
            assert np.allclose(other["losses"], first["losses"], atol=2e-4), method
            assert (other["alive"], other["kept"]) == (first["alive"], first["kept"]), method
    kept = {method: run[0]["kept"] for method, run in runs_of.items()}
    assert set(kept["lora"]) == set(kept["full"]) == {1.0}
    assert set(kept["prune_lora"]) == set(kept["flap"]) == set(kept["wanda_sp"]) == {0.6}
    assert kept["mask_tuning"] == [1.0] * 7 + [0.6]
    assert kept["lora_prune"] == [1.0] * 4 + [0.6] * 4
    for method in ("prune_distill", "lora_prune_distill"):
        assert kept[method] == [1.0] * 4 + [0.6] * 4
    assert runs_of["full"][0]["losses"][-1] < runs_of["lora"][0]["losses"][-1]
    pruned = ("prune_lora", "lora_prune", "flap", "wanda_sp", "mask_tuning")
    written = json.loads((folder / "flap" / "model" / "config.json").read_text(encoding="utf8"))
    assert written["mlp_bias"]
    assert len({str(runs_of[method][0]["alive"]) for method in pruned}) == len(pruned)


@pytest.mark.dist
def test_taylor_importance_is_that_of_plain_pytorch(folder: Path) -> None:
    importances = multiprocess.run(2, "score_jobs.taylor", {"folder": str(folder), "stages": [(2, False), (3, False)]})
    plain = multiprocess.run(1, "score_jobs.plain_taylor", {"folder": str(folder)})
    assert min(plain) > 0
    for name, importance in importances.items():
        assert np.allclose(importance, plain, rtol=1e-3), name


@pytest.mark.parametrize("score", ["salience", "fisher", "obs"])
def test_a_cut_that_nothing_was_scored_for_is_refused(score: str) -> None:
    model = tiny.model()
    run = RunConfig(sparsity=0.4, align=4, score=score, rank_growth="none")
    pruner = Pruner(run, anatomy_of(model.config), 8, CPU)
    with pytest.raises(UserError, match="no step before the cut had a finite loss"):
        pruner.cut_now(model)
    assert not pruner.cut_done
