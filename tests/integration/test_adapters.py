"""Runs that write their adapters unmerged, and runs that start from a LoRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import apt_ds
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.models import adapter
from apt_ds.runtime import zero
from apt_ds.training import run as training_run
from apt_ds.training.trainer import Trainer
from tests.support import multiprocess, tiny
from tests.support.launcher import Place
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("alone")

ADAPTERS = ["--export_adapters", "true", "--report", "false"]
GRADUAL = ["--pruning", "gradual", "--mask_step", "0.5", "--max_steps", "6", "--pruning_phase", "0.67"]
ZERO3 = ROOT / "ds_configs" / "zero3.json"


@pytest.fixture(scope="module")
def written(place: Place) -> Path:
    """The output of a run under ZeRO-3 that has cut and grown, with its checkpoints."""
    output = place.folder / "written"
    training_run.train(resolve(place.words(output, *ADAPTERS, *GRADUAL, "--save_steps", "3", deepspeed=ZERO3)))
    return output


def start(words: list[str]) -> Trainer:
    """A run before its first step."""
    return training_run.prepare(resolve(words))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=tiny.ids()).logits


def initial_logits(trainer: Trainer) -> torch.Tensor:
    outputs = logits(trainer.engine.module)
    zero.release_gathered(trainer.engine)
    trainer.engine.module.train()
    return outputs


def merged(folder: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder / "model"))


def lora(folder: Path, place: Place, **changes: object) -> torch.Tensor:
    """Write a LoRA of the model of `place`. Returns its logits."""
    base = AutoModelForCausalLM.from_pretrained(place.folder / "model")
    model = get_peft_model(base, LoraConfig(**({"target_modules": ["q_proj", "down_proj"]} | changes)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    return logits(model)


def test_adapters_of_a_run_reproduce_its_model(written: Path) -> None:
    torch.testing.assert_close(
        logits(apt_ds.load_adapters(str(written / "adapters"))), merged(written), atol=1e-5, rtol=0
    )
    config = json.loads((written / "adapters" / "adapter_config.json").read_text(encoding="utf8"))
    assert config["rank_pattern"] and config["r"] > 2


def test_a_run_starts_from_written_adapters_that_its_checkpoints_do_not_need(place: Place, written: Path) -> None:
    folder, output = place.folder / "copied", place.folder / "further"
    shutil.copytree(written / "adapters", folder)
    words = place.words(output, *ADAPTERS, *GRADUAL, "--save_steps", "3", "--rank_budget", "2", deepspeed=ZERO3)
    words += ["--model_name_or_path", str(written / "base"), "--init_adapters", str(folder)]
    trainer = start(words)
    torch.testing.assert_close(initial_logits(trainer), merged(written), atol=1e-5, rtol=0)
    before = adapter.ranks(trainer.engine.module)
    trainer.run()
    ranks = json.loads((output / "adapters" / "adapter_config.json").read_text(encoding="utf8"))
    assert ranks["r"] > max(before.values())
    expected = merged(output)
    torch.testing.assert_close(logits(apt_ds.load_adapters(str(output / "adapters"))), expected, atol=1e-5, rtol=0)
    shutil.rmtree(folder)
    again = start([*words, "--resume_from_checkpoint", str(output / "checkpoint-3")])
    assert again.done == 3
    again.run()
    torch.testing.assert_close(merged(output), expected, atol=0, rtol=0)


def test_lora_without_pruning_names_the_original_base(place: Place) -> None:
    output = place.folder / "lora"
    training_run.train(resolve(place.words(output, *ADAPTERS, "--method", "lora", "--max_steps", "3")))
    assert not (output / "base").exists()
    base = AutoModelForCausalLM.from_pretrained(place.folder / "model")
    loaded = PeftModel.from_pretrained(base, output / "adapters")
    torch.testing.assert_close(logits(loaded), merged(output), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        logits(apt_ds.load_adapters(str(output / "adapters"))), merged(output), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("rslora", [False, True])
def test_a_run_continues_a_lora_of_peft(place: Place, tmp_path: Path, rslora: bool) -> None:
    first = "model.layers.0.self_attn.q_proj"
    patterns = {"rank_pattern": {first: 3}, "alpha_pattern": {first: 5}}
    expected = lora(tmp_path / "lora", place, r=4, lora_alpha=6, use_rslora=rslora, **patterns)
    trainer = start(place.words(tmp_path / "out", *GRADUAL, "--init_adapters", str(tmp_path / "lora")))
    torch.testing.assert_close(initial_logits(trainer), expected, atol=1e-5, rtol=0)
    assert trainer.run_config.targets == ("q", "down") and adapter.ranks(trainer.engine.module)[first] == 3
    trainer.finish()


def test_more_targets_get_new_adapters_that_change_nothing(place: Place, tmp_path: Path) -> None:
    expected = lora(tmp_path / "lora", place, r=4, layers_to_transform=[1])
    words = ["--init_adapters", str(tmp_path / "lora"), "--adapter_targets", "q,v,down", *GRADUAL]
    trainer = start(place.words(tmp_path / "out", *words))
    torch.testing.assert_close(initial_logits(trainer), expected, atol=1e-5, rtol=0)
    assert len(adapter.ranks(trainer.engine.module)) == 6
    trainer.finish()


def test_adapters_that_do_not_fit_are_one_line_and_write_nothing(place: Place, written: Path, tmp_path: Path) -> None:
    lora(tmp_path / "lora", place, r=4)
    lora(tmp_path / "high", place, r=80)
    tiny.save_model(tmp_path / "wide", intermediate_size=64)
    tiny.save_model(tmp_path / "short", num_hidden_layers=1)
    for words, message in [
        (["--init_adapters", str(tmp_path / "none")], "is not a PEFT folder: adapter_config.json is missing"),
        (["--init_adapters", str(written / "adapters")], "is another model than the one they were trained on"),
        (["--init_adapters", str(tmp_path / "high")], "has rank 80: give --max_rank 80 or more"),
        (["--init_adapters", str(tmp_path / "lora"), "--adapter_targets", "q,v"], "leaves out down"),
        (["--init_adapters", str(tmp_path / "lora"), "--score", "taylor"], "does not support --score taylor"),
        (
            ["--init_adapters", str(tmp_path / "lora"), "--model_name_or_path", str(tmp_path / "wide")],
            "is of another base: model.layers.0.mlp.down_proj.lora_A has the shape [4, 48], the model needs [4, 64]",
        ),
        (
            ["--init_adapters", str(tmp_path / "lora"), "--model_name_or_path", str(tmp_path / "short")],
            "which is none of the model's projections",
        ),
        (["--export_adapters", "true", "--method", "full"], "--export_adapters requires --train adapters (got all)"),
    ]:
        with pytest.raises(UserError) as caught:
            start(place.words(tmp_path / "out", *words))
        assert message in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export_bits", ["16", "4"])
def test_a_base_of_4_bits_is_written_as_export_bits_says(place: Place, tmp_path: Path, export_bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    tiny.save_blocks(tmp_path)
    words = place.words(tmp_path / "out", *ADAPTERS, "--base_bits", "4", "--export_bits", export_bits)
    words += ["--calibration_steps", "1", "--max_steps", "2", "--align", "64"]
    trainer = start([*words, "--model_name_or_path", str(tmp_path / "model")])
    trainer.train_loop()
    trained = initial_logits(trainer)
    trainer.finish()
    loaded = apt_ds.load_adapters(str(tmp_path / "out" / "adapters"))
    config = json.loads((tmp_path / "out" / "base" / "config.json").read_text(encoding="utf8"))
    assert ("quantization_config" in config) == (export_bits == "4")
    # the scales of 4 bits are rounded again; merged weights would be quantized again, which adapters are not
    tolerance = 1e-5 if export_bits == "16" else 2e-2
    assert (logits(loaded) - trained).norm() / trained.norm() < tolerance


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_gather_the_adapters(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    flags = [*ADAPTERS, *GRADUAL, "--sparsity", "0.4", "--prune_every", "2", "--align", "4", "--save_steps", "0"]
    arguments = {"folder": str(tmp_path), "name": "out", "stage": 3, "offload": False, "flags": flags}
    multiprocess.run(2, "whole", arguments)
    loaded = apt_ds.load_adapters(str(tmp_path / "out" / "adapters"))
    torch.testing.assert_close(logits(loaded), merged(tmp_path / "out"), atol=1e-5, rtol=0)
