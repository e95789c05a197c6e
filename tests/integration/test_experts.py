"""Whole runs on mixtures of experts: every mode ends in a model that loads without apt_ds, and resumes bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apt_ds.config.resolve import resolve
from apt_ds.pruning import size_report
from apt_ds.training import run as training_run
from tests.models.test_export_tasks import loaded_elsewhere
from tests.support import multiprocess, tiny, tiny_experts
from tests.support.launcher import Place, Run, launch

BLOCKS = ["--prune_blocks", "experts,heads,neurons", "--align", "8"]
GRADUAL = ["--pruning", "gradual", "--max_steps", "4", "--mask_step", "0.5", "--pruning_phase", "0.5"]
MODES = {
    "mixtral": [*GRADUAL, "--prune_blocks", "experts,heads,neurons,hidden", "--structure", "adaptive", "--distill"],
    "qwen3_moe": [*GRADUAL, "--gradient_checkpointing", "--packing", "true"],
    "olmoe": ["--method", "prune_lora", "--structure", "adaptive"],
}


def inputs(folder: Path, family: str) -> Place:
    """A tiny mixture and data."""
    tiny_experts.save(folder / "model", family)
    tiny.save_data(folder / "data.json", 24)
    return Place(folder)


def test_every_family_ends_in_a_model(alone: None, tmp_path: Path) -> None:
    expected, calls = {}, {}
    for family, flags in MODES.items():
        place = inputs(tmp_path / family, family)
        words = place.words(tmp_path / family / "out", "--max_steps", "2", "--calibration_steps", "1", *BLOCKS, *flags)
        trainer = training_run.prepare(resolve(words))
        trainer.train_loop()
        sizes = size_report.summary(trainer.pruner)["sizes"]
        assert trainer.pruner.at_target() and sizes["experts"] != tiny_experts.EXPERTS, family
        with torch.no_grad():
            expected[family] = trainer.engine.module.eval()(input_ids=tiny.ids(2)).logits
        trainer.finish()
        trainer.metrics_logger.close()
        written = tmp_path / family / "out" / "model"
        greedy = {"max_new_tokens": 2, "do_sample": False}
        bundled = bool(list(written.glob("*.py")))
        calls[family] = ("AutoModelForCausalLM", str(written), bundled, {"input_ids": tiny.ids(2)}, greedy)
    for (family, attention), (_, answers, _) in loaded_elsewhere(calls, tmp_path).items():
        assert torch.allclose(answers["logits"], expected[family], atol=1e-5), (family, attention)


RESUMED = ["--pruning", "gradual", "--structure", "adaptive", "--max_steps", "6", "--sparsity", "0.5", *BLOCKS]
RESUMED += ["--mask_step", "0.5", "--rank", "2", "--prune_every", "2"]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder, and runs of two ranks under stage 3: one that never stops, one that saves, and one from step 2."""
    folder = tmp_path_factory.mktemp("resumed")
    inputs(folder, "qwen3_moe")
    job = {"folder": str(folder), "cases": [("experts3", 3, False, RESUMED, [2])]}
    return folder, multiprocess.run(2, "resumed", job)["experts3"]


@pytest.mark.dist
def test_two_ranks_resume_bit_for_bit(resumed: tuple[Path, dict[str, Any]]) -> None:
    _, runs = resumed
    straight = runs["straight"]
    assert straight["rebuilds"] >= 2 and straight["rows"][-1]["kept"] <= 0.5
    for when, run in runs.items():
        assert run == straight, when


@pytest.mark.dist
@pytest.mark.slow
def test_a_run_resumes_alike_on_one_rank_and_in_stage_2(resumed: tuple[Path, dict[str, Any]]) -> None:
    folder, runs = resumed
    job = {"folder": str(folder), "sources": {str(folder / "experts3" / "checkpoint-2"): RESUMED}}
    for other in multiprocess.run(1, "continued", job | {"stages": [(2, False)]}).values():
        assert other["alive"] == runs["straight"]["alive"]
        losses, wanted = ([row["loss"] for row in run["rows"]] for run in (other, runs["straight"]))
        assert np.allclose(losses, wanted, rtol=1e-5)


@pytest.mark.dist
@pytest.mark.slow
def test_a_launched_run_with_two_ranks_and_stage_3_ends_in_a_model(tmp_path: Path) -> None:
    place = inputs(tmp_path, "mixtral")
    words = place.words(tmp_path / "out", *BLOCKS, *MODES["mixtral"], deepspeed="ds_configs/zero3.json")
    ended = launch(2, words)
    assert ended.status == 0 and not ended.mistakes, ended.err
    assert (tmp_path / "out" / "model" / "modeling_apt_mixtral.py").is_file()


MISTAKES = {
    "at least 2 experts in every layer": ["--prune_blocks", "experts", "--sparsity", "0.8"],
    "--adapter_targets gate,down: the experts of this model have no adapters": ["--adapter_targets", "q,gate,down"],
    "--align 4: transformers computes experts of sizes that are multiples of 8": ["--align", "4"],
    "--allocate kl does not support a mixture": ["--allocate", "kl"],
    "--scale_steps does not support a mixture": ["--scale_steps", "2"],
    "--score fisher does not support a mixture": ["--method", "lora_prune"],
    "--base_bits 8: bitsandbytes quantizes linear layers only": ["--base_bits", "8"],
}


def test_mistakes_are_one_line_before_anything_is_written(tmp_path: Path, run: Run) -> None:
    place = inputs(tmp_path, "mixtral")
    cases = [(place, text, flags) for text, flags in MISTAKES.items()]
    dense = tmp_path / "dense"
    tiny.save_model(dense / "model")
    tiny.save_data(dense / "data.json", 24)
    text = "--prune_blocks experts,neurons: the model has no experts; give some of heads, neurons, hidden"
    cases.append((Place(dense), text, ["--prune_blocks", "experts,neurons"]))
    for where, text, flags in cases:
        ended = run(where.words(tmp_path / "out", "--align", "0", *flags))
        assert ended.status == 2 and len(ended.mistakes) == 1, (flags, ended.err)
        assert text in ended.mistakes[0] and not (tmp_path / "out").exists()
