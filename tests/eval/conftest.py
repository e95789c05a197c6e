"""Models that several files of this folder evaluate."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch

from apt_ds.models.export.modeling_apt_llama import AptLlamaConfig, AptLlamaForCausalLM
from tests.eval.commands import TEXT
from tests.support import tiny


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `dense` model, a `pruned` one whose layers differ, and `text.txt`."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny.save_model(folder / "dense")
    values = tiny.config().to_dict() | {"head_dim": 8, "layer_key_value_heads": [2, 1]}
    values |= {"layer_intermediate_sizes": [48, 20]}
    values.pop("model_type")
    config = AptLlamaConfig(**values)
    config.architectures = ["AptLlamaForCausalLM"]
    names = {"AutoConfig": "AptLlamaConfig", "AutoModelForCausalLM": "AptLlamaForCausalLM"}
    config.auto_map = {key: f"modeling_apt_llama.{name}" for key, name in names.items()}
    torch.manual_seed(0)
    AptLlamaForCausalLM(config).save_pretrained(folder / "pruned")
    tiny.tokenizer().save_pretrained(folder / "pruned")
    for name in ("modeling_apt_llama.py", "apt_layer_sizes.py"):
        shutil.copy(str(resources.files("apt_ds.models.export") / name), folder / "pruned")
    (folder / "text.txt").write_text(TEXT, encoding="utf8")
    return folder
