"""Whole runs on the published shapes, scaled down: each ends in a model that loads without apt_ds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from apt_ds.analysis.bench.llamas import LLAMAS
from apt_ds.config.resolve import resolve
from apt_ds.training import run as training_run
from tests.models.test_export_tasks import loaded_elsewhere
from tests.support import tiny
from tests.support.launcher import PRETUNING, Place, Run
from tests.support.scaled_llamas import scaled_config

pytestmark = pytest.mark.usefixtures("alone")

AUTO = "AutoModelForCausalLM"
HEADS = ["--prune_blocks", "heads", "--sparsity", "0.15"]
GRADUAL = ["--pruning", "gradual", "--max_steps", "4", "--mask_step", "0.5", "--pruning_phase", "0.5"]
ALL = ["--prune_blocks", "heads,neurons,hidden", "--sparsity", "0.5"]
# shape, changes of its configuration, flags
QUICK: dict[str, tuple[str, dict[str, bool], list[str]]] = {
    "heads of a LLaMA-2": ("llama2-7b", {}, HEADS),
    "groups of a LLaMA-3, gradual": ("llama3-8b", {}, GRADUAL),
    "biases": ("llama2-7b", {"attention_bias": True}, ["--prune_blocks", "heads,neurons"]),
}
MODES = {
    "pretuning": [],
    "gradual": [*GRADUAL, *ALL],
    "adaptive": ["--structure", "adaptive", *ALL],
    "posttuning": ["--method", "lora_prune", "--pruning_phase", "0.5", *HEADS],
    "weight gradients": ["--method", "prune_lora", *ALL],
}


def inputs(folder: Path, shape: str, changes: dict[str, bool]) -> Place:
    """A model of a published shape with random weights, and data."""
    torch.manual_seed(0)
    config = scaled_config(shape, 4, pad_token_id=0, **changes)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.save_data(folder / "data.json", 16)
    return Place(folder)


def trained(place: Place, flags: list[str]) -> torch.Tensor:
    """Logits of the trained model, which is also written. Its folder is `out/model`, unless `flags` name another."""
    words = place.words(
        place.folder / "out", "--max_steps", "2", "--calibration_steps", "1", "--save_steps", "0", *flags
    )
    trainer = training_run.prepare(resolve(words))
    trainer.train_loop()
    assert trainer.pruner.at_target() and trainer.pruner.pruning_finished | (trainer.pruner.cut_step is not None)
    model = trainer.engine.module.eval()
    with torch.no_grad():
        logits = model(input_ids=tiny.ids(2)).logits
    trainer.finish()
    trainer.metrics_logger.close()
    return logits


def check(cases: dict[str, tuple[str, dict[str, bool], list[str]]], folder: Path) -> dict[str, str]:
    """Run every case, and load what it wrote in a process without apt_ds. Returns the classes that were loaded."""
    expected, calls = {}, {}
    for number, (name, (shape, changes, flags)) in enumerate(cases.items()):
        expected[name] = trained(inputs(folder / str(number), shape, changes), flags)
        written = folder / str(number) / "out" / "model"
        bundled = bool(list(written.glob("*.py")))
        # layers that all keep the same need no file of their own
        assert "adaptive" in flags or not bundled
        greedy = {"max_new_tokens": 2, "do_sample": False}
        calls[name] = (AUTO, str(written), bundled, {"input_ids": tiny.ids(2)}, greedy)
    answers = loaded_elsewhere(calls, folder)
    for (name, attention), (_, answer, _) in answers.items():
        assert torch.allclose(answer["logits"], expected[name], atol=1e-5), (name, attention)
    return {name: kind for (name, _), (kind, _, _) in answers.items()}


def test_runs_on_published_shapes_end_in_a_model(tmp_path: Path) -> None:
    classes = check(QUICK, tmp_path)
    assert classes["heads of a LLaMA-2"] == "MistralForCausalLM" and classes["biases"] == "LlamaForCausalLM"


@pytest.mark.slow
@pytest.mark.parametrize("shape", LLAMAS)
def test_every_mode_on_every_published_shape_ends_in_a_model(shape: str, tmp_path: Path) -> None:
    check({mode: (shape, {}, flags) for mode, flags in MODES.items()}, tmp_path)


def test_sizes_that_cannot_be_written_are_one_line_before_anything_is_written(tmp_path: Path, run: Run) -> None:
    place = inputs(tmp_path, "smollm2-360m", {"mlp_bias": True})
    flags = ["--prune_blocks", "hidden", "--align", "11", "--sparsity", "0.1"]
    ended = run(place.words(tmp_path / "out", *flags))
    assert ended.status == 2 and len(ended.mistakes) == 1 and not (tmp_path / "out").exists()
    assert "can be written: LLaMA with attention_bias or mlp_bias" in ended.mistakes[0]


def test_a_model_that_was_written_as_a_mistral_can_be_pruned_again(tmp_path: Path) -> None:
    place = inputs(tmp_path, "llama2-7b", {})
    trained(place, HEADS)
    expected, calls = {}, {}
    for structure in ("uniform", "adaptive"):
        output = tmp_path / structure
        again = ["--model_name_or_path", str(tmp_path / "out" / "model"), "--output_dir", str(output)]
        expected[structure] = trained(place, [*again, "--structure", structure])
        greedy = {"max_new_tokens": 2, "do_sample": False}
        bundled = structure == "adaptive"
        calls[structure] = (AUTO, str(output / "model"), bundled, {"input_ids": tiny.ids(2)}, greedy)
    for (structure, _), (kind, answer, _) in loaded_elsewhere(calls, tmp_path).items():
        assert kind == {"uniform": "MistralForCausalLM", "adaptive": "AptMistralForCausalLM"}[structure]
        assert torch.allclose(answer["logits"], expected[structure], atol=1e-5)


@pytest.mark.parametrize(("sparsity", "coarse"), [("0.02", True), ("0.2", False)])
def test_a_run_says_that_its_sizes_are_coarse(
    sparsity: str, coarse: bool, place: Place, tmp_path: Path, run: Run
) -> None:
    """A key/value group of each layer makes a fifth of the prunable parameters of the tiny model."""
    words = ["--prune_blocks", "heads", "--sparsity", sparsity, "--structure", "uniform", "--max_steps", "1"]
    ended = run(place.words(tmp_path / "out", *PRETUNING, *words, "--report", "false"))
    assert ended.status == 0, ended.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf8"))
    notices = [text for text in summary["warnings"] if "of the prunable parameters remain where" in text]
    assert len(notices) == coarse, (summary["pruning"]["kept"], summary["warnings"])
