"""A LoRA of PEFT is read with its scale. What it computes beyond that is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from apt_ds.config.errors import UserError
from apt_ds.models.peft_folder import read_folder
from tests.support import tiny


def save(folder: Path, **changes: Any) -> Path:
    """A LoRA on q and v, rank 4, with a B that does something."""
    config = LoraConfig(**({"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]} | changes))
    model = get_peft_model(tiny.model(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


def spoil(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf8")) | changes), encoding="utf8")


def test_scales_follow_patterns_and_rslora(tmp_path: Path) -> None:
    first = "model.layers.0.self_attn.q_proj"
    patterns = {"rank_pattern": {first: 2}, "alpha_pattern": {"v_proj": 6, first: 7}}
    pairs = read_folder(save(tmp_path / "plain", **patterns), "F").pairs
    factors = {path: factor for path, (_, _, factor) in pairs.items()}
    assert factors == {
        first: 3.5,
        "model.layers.0.self_attn.v_proj": 1.5,
        "model.layers.1.self_attn.q_proj": 3.0,
        "model.layers.1.self_attn.v_proj": 1.5,
    }
    assert pairs[first][0].shape == (2, 32) and pairs[first][1].shape == (32, 2)
    stabilized = read_folder(save(tmp_path / "rslora", use_rslora=True), "F").pairs
    assert {factor for _, _, factor in stabilized.values()} == {6.0}


def test_the_old_format_is_read(tmp_path: Path) -> None:
    expected = read_folder(save(tmp_path), "F").pairs
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    pairs = read_folder(tmp_path, "F").pairs
    assert all(
        torch.equal(a, pairs[path][0]) and torch.equal(b, pairs[path][1]) for path, (a, b, _) in expected.items()
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "F uses DoRA (use_dora), which is not supported"),
        ({"bias": "lora_only"}, "F has trained biases (bias 'lora_only')"),
        ({"lora_bias": True}, "F uses lora_bias"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "F uses layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base"),
        ({"peft_type": "LOHA"}, "F is of the type 'LOHA': only LORA is supported"),
        ({"r": 5}, "F contradicts itself: model.layers.0.self_attn.q_proj has rank 4, adapter_config.json says 5"),
    ],
)
def test_other_kinds_of_adapters_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    save(tmp_path)
    spoil(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        read_folder(tmp_path, "F")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_weights_beyond_a_lora_and_broken_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"F is not a PEFT folder: adapter_config\.json is missing"):
        read_folder(tmp_path, "F")
    weights = load_file(save(tmp_path) / "adapter_model.safetensors")
    more = {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 8)}
    save_file(weights | more, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"embed_tokens.lora_embedding_A, which is not of a LoRA on a linear layer"):
        read_folder(tmp_path, "F")
    halved = {name: value for name, value in weights.items() if not name.endswith("0.self_attn.q_proj.lora_B.weight")}
    save_file(halved, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"F is incomplete: model.layers.0.self_attn.q_proj has only lora_A"):
        read_folder(tmp_path, "F")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="F: its weights cannot be read"):
        read_folder(tmp_path, "F")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="F has no weights: neither"):
        read_folder(tmp_path, "F")
