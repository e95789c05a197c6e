"""Reading weights: what a checkpoint has that the model does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import ANSWERS
from apt_ds.models.weights import read_weights, unknown_weights
from tests.support import tiny, tiny_families

LAYER = "model.layers.1.self_attn"


def changed(row: str, folder: Path, removed: tuple[str, ...] = (), **added: Tensor) -> str:
    """A model whose file lacks weights and has others."""
    tiny_families.model(row).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if name not in removed} | added
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_a_fused_variant_of_a_family_is_refused(tmp_path: Path) -> None:
    names = tuple(f"{LAYER}.{short}_proj.weight" for short in "qkv")
    folder = changed("llama3", tmp_path, names, **{f"{LAYER}.qkv_proj.weight": torch.zeros(64, 32)})
    with pytest.raises(UserError, match=r"3 weights are missing, such as .*k_proj.*, and 1 are unknown, such as .*qkv"):
        read_weights(folder, torch.float32, "eager")


def test_a_weight_that_no_layer_has_is_refused(tmp_path: Path) -> None:
    """Transformers would ignore it, and the model would compute something else than it was trained for."""
    folder = changed("mistral-nemo", tmp_path, **{f"{LAYER}.q_norm.weight": torch.ones(4)})
    with pytest.raises(UserError, match=r"1 weights are unknown to MistralForCausalLM, such as .*1\.self_attn\.q_norm"):
        read_weights(folder, torch.float32, "eager")


def test_old_buffers_and_other_heads_are_no_mistake(tmp_path: Path) -> None:
    extra = {f"{LAYER}.rotary_emb.inv_freq": torch.ones(2), "score.weight": torch.ones(2, 40)}
    read_weights(changed("mistral-nemo", tmp_path / "llm", **extra), torch.float32, "eager")
    tiny.small("bert-classes").save_pretrained(tmp_path / "bert")
    model, missing = read_weights(str(tmp_path / "bert"), torch.float32, "eager", ANSWERS, ("qa_outputs",))
    assert missing == ["qa_outputs"]
    assert unknown_weights(model, ["bert.pooler.dense.weight", "cls.predictions.bias"]) == []
    assert unknown_weights(model, ["bert.encoder.layer.1.output.gate.weight"])
