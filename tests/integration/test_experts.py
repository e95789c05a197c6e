"""Whole runs on mixtures of experts: every mode ends in a model that loads without apt_ds, and resumes bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from apt_ds.config.resolve import resolve
from apt_ds.training import run
from tests.models.test_export_tasks import loaded_elsewhere
from tests.support import multiprocess, tiny, tiny_experts
from tests.support.launcher import Place, caller, launch, own_world

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


@pytest.fixture
def alone() -> Iterator[None]:
    """This process is a world of its own."""
    with own_world():
        yield


def test_every_family_ends_in_a_model(alone: None, tmp_path: Path) -> None:
    expected, calls = {}, {}
    for family, flags in MODES.items():
        place = inputs(tmp_path / family, family)
        words = place.words(tmp_path / family / "out", "--max_steps", "2", "--calibration_steps", "1", *BLOCKS, *flags)
        made = run.prepare(resolve(words))
        made.train_loop()
        assert made.pruner.at_target() and made.pruner.summary()["sizes"]["experts"] != tiny_experts.EXPERTS, family
        with torch.no_grad():
            expected[family] = made.engine.module.eval()(input_ids=tiny.ids(2)).logits
        made.finish()
        made.metrics_logger.close()
        written = tmp_path / family / "out" / "model"
        greedy = {"max_new_tokens": 2, "do_sample": False}
        bundled = bool(list(written.glob("*.py")))
        calls[family] = ("AutoModelForCausalLM", str(written), bundled, {"input_ids": tiny.ids(2)}, greedy)
    for (family, attention), (_, found, _) in loaded_elsewhere(calls, tmp_path).items():
        assert torch.allclose(found["logits"], expected[family], atol=1e-5), (family, attention)


@pytest.mark.dist
def test_two_ranks_resume_bit_for_bit_and_one_rank_goes_on_alike(tmp_path: Path) -> None:
    inputs(tmp_path, "qwen3_moe")
    flags = ["--pruning", "gradual", "--structure", "adaptive", "--max_steps", "8", "--sparsity", "0.5", *BLOCKS]
    flags += ["--mask_step", "0.5", "--rank", "2", "--prune_every", "2"]
    job = {"folder": str(tmp_path), "cases": [("experts3", 3, False, flags, [3])]}
    runs = multiprocess.run(2, "resumed", job)["experts3"]
    straight = runs["straight"]
    assert straight["rebuilds"] >= 2 and straight["rows"][-1]["kept"] <= 0.5
    for when, resumed in runs.items():
        assert resumed == straight, when
    job = {"folder": str(tmp_path), "sources": {str(tmp_path / "experts3" / "checkpoint-3"): flags}}
    for other in multiprocess.run(1, "continued", job | {"stages": [(2, False)]}).values():
        assert other["alive"] == straight["alive"]
        losses, wanted = ([row["loss"] for row in found["rows"]] for found in (other, straight))
        assert np.allclose(losses, wanted, rtol=1e-5)


@pytest.mark.dist
@pytest.mark.slow
def test_the_launcher_with_two_ranks_and_stage_3(tmp_path: Path) -> None:
    place = inputs(tmp_path, "mixtral")
    words = place.words(tmp_path / "out", *BLOCKS, *MODES["mixtral"], deepspeed="ds_configs/zero3.json")
    ended = launch(2, words)
    assert ended.status == 0 and not ended.mistakes, ended.err
    assert (tmp_path / "out" / "model" / "modeling_apt_mixtral.py").is_file()


MISTAKES = {
    "at least 2 experts in every layer": ["--prune_blocks", "experts", "--sparsity", "0.8"],
    "--adapter_targets gate,down: the experts of this model have no adapters": ["--adapter_targets", "q,gate,down"],
    "--align 4: transformers computes experts of sizes that are multiples of 8": ["--align", "4"],
    "--score fisher does not support a mixture": ["--method", "lora_prune"],
    "--base_bits 8: bitsandbytes quantizes linear layers only": ["--base_bits", "8"],
}


def test_mistakes_are_one_line_before_anything_is_written(
    alone: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = caller(capfd, monkeypatch)
    place = inputs(tmp_path, "mixtral")
    cases = [(place, text, flags) for text, flags in MISTAKES.items()]
    dense = tmp_path / "dense"
    tiny.save_model(dense / "model")
    tiny.save_data(dense / "data.json", 24)
    text = "--prune_blocks experts,neurons: the model has no experts; give some of heads, neurons, hidden"
    cases.append((Place(dense), text, ["--prune_blocks", "experts,neurons"]))
    for where, text, flags in cases:
        ended = call(where.words(tmp_path / "out", "--align", "0", *flags))
        assert ended.status == 2 and len(ended.mistakes) == 1, (flags, ended.err)
        assert text in ended.mistakes[0] and not (tmp_path / "out").exists()
