"""The base under the adapters computes what the merged export does, in PEFT and in this package."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from apt_ds.models.adapter import adapters
from apt_ds.models.architectures import architecture_of
from apt_ds.models.architectures.spec import AUTO_CLASSES
from apt_ds.models.initial_adapters import initial_of
from apt_ds.models.peft_folder import read_folder
from tests.support import tiny
from tests.support.adapter_folders import Written, write_cut

# decoders, joined and fused projections, a task head that PEFT trains whole, a sublayer without blocks
CASES = [
    *(("llama3", "uniform"), ("llama3", "whole"), ("qwen2", "emptied"), ("gemma2", "uniform"), ("phi3", "uniform")),
    *(("bert-classes", "uniform"), ("roberta-classes", "adaptive"), ("modernbert-classes", "whole")),
    *(("deberta-answers", "uniform"), ("t5-gated", "adaptive"), ("t5", "uniform")),
]


def answers(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return tiny.answer(model.eval())  # type: ignore[arg-type]


@pytest.mark.parametrize(("row", "structure"), CASES)
def test_the_base_with_adapters_equals_the_merged_model(row: str, structure: str, tmp_path: Path) -> None:
    written = write_cut(row, structure, tmp_path)
    auto = AUTO_CLASSES[written.task]
    expected = answers(auto.from_pretrained(tmp_path / "model"))
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text(encoding="utf8"))
    base = auto.from_pretrained(config["base_model_name_or_path"])
    alone = answers(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapters")
    torch.testing.assert_close(answers(loaded), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(answers(written.model), expected, atol=1e-5, rtol=0)
    assert (alone - expected).abs().max() > 1e-2
    assert (tmp_path / "base").is_dir() == (structure != "whole")
    _read_again(written, expected)


def _read_again(written: Written, expected: torch.Tensor) -> None:
    """Start a copy of the model, with other adapters and heads, from the folder."""
    model = copy.deepcopy(written.model)
    for name, parameter in model.named_parameters():
        if "lora_" in name or name.startswith(written.anatomy.task_heads or ("none",)):
            parameter.data.normal_()
    assert not torch.allclose(answers(model), expected, atol=1e-2)
    joined = architecture_of(model.config).joined(written.anatomy)
    folder = read_folder(written.folder / "adapters", "the folder")
    initial_of(folder, written.anatomy, joined, "the folder").load(model)
    torch.testing.assert_close(answers(model), expected, atol=1e-5, rtol=0)
    before = {path: len(layer.lora_A) for path, layer in adapters(written.model)}
    assert {path: len(layer.lora_A) for path, layer in adapters(model)} == before


def test_the_folder_states_ranks_scales_and_places(tmp_path: Path) -> None:
    written = write_cut("llama3", "uniform", tmp_path)
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text(encoding="utf8"))
    ranks = {path: len(layer.lora_A) for path, layer in adapters(written.model)}
    assert config["r"] == max(ranks.values()) == 5 and config["lora_alpha"] == 10
    assert config["rank_pattern"] == {path: rank for path, rank in ranks.items() if rank != 5}
    assert config["alpha_pattern"] == {path: 2 * rank for path, rank in config["rank_pattern"].items()}
    assert config["target_modules"] == [f"{p}_proj" for p in ("down", "gate", "k", "o", "q", "up", "v")]
    assert config["task_type"] == "CAUSAL_LM" and config["modules_to_save"] is None
    card = (tmp_path / "adapters" / "README.md").read_text(encoding="utf8")
    note = json.loads((tmp_path / "adapters" / "apt_ds.json").read_text(encoding="utf8"))
    assert note["base_fingerprint"] in card and "- Base: `base`" in card and str(tmp_path) not in card
    assert note["base_model_name_or_path"] == config["base_model_name_or_path"] == str(tmp_path / "base")
    assert not list(tmp_path.glob("*.tmp"))


def test_adapters_of_joined_projections_are_blocks_of_one(tmp_path: Path) -> None:
    written = write_cut("phi3", "uniform", tmp_path)
    tensors = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    attention = written.model.get_submodule("model.layers.1.self_attn")
    parts = [attention.get_submodule(f"{name}_proj") for name in "qkv"]
    a, b = (tensors[f"base_model.model.model.layers.1.self_attn.qkv_proj.lora_{part}.weight"] for part in "AB")
    assert torch.equal(a, torch.cat([part.lora_A for part in parts]))
    assert torch.equal(b, torch.block_diag(*(part.lora_B for part in parts)))
