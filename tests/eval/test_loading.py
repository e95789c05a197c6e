"""Finished models load without running code of their folder, and are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, LlamaConfig, T5Config

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.eval import loading
from apt_ds.models.export.modeling_apt_llama import AptLlamaForCausalLM
from tests.support.mmlu_fixtures import model, tokenizer, write_exam


def test_a_model_with_sizes_by_layer_loads_without_running_its_code(llamas: Path) -> None:
    (llamas / "pruned" / "modeling_apt_llama.py").write_text("raise RuntimeError('ran')", encoding="utf8")
    loaded = loading.load(str(llamas / "pruned"))
    assert isinstance(loaded.model, AptLlamaForCausalLM)
    assert loaded.model.model.layers[1].mlp.up_proj.out_features == 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exam(tmp_path_factory.mktemp("mmlu"))


def test_a_fingerprint_tells_models_apart(place: Path, tmp_path: Path) -> None:
    first = loading.fingerprint(str(place / "model"))
    assert first == loading.fingerprint(str(place / "model"))
    changed = model()
    with torch.no_grad():
        changed.model.norm.weight[3] += 1
    changed.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert loading.fingerprint(str(tmp_path)) != first


def test_the_task_type_comes_from_the_class_or_the_architecture() -> None:
    named = BertConfig(architectures=["BertForQuestionAnswering"])
    assert loading.task_type_of(named) == ANSWERS
    assert loading.task_type_of(BertConfig(architectures=["AptBertForSequenceClassification"])) == CLASSIFICATION
    assert loading.task_type_of(T5Config()) == GENERATION and loading.task_type_of(LlamaConfig()) == LANGUAGE_MODEL
    assert loading.task_type_of(BertConfig(architectures=["BertModel"])) == CLASSIFICATION


def test_only_the_zero_section_of_a_deepspeed_file_matters(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    zero_section = {"stage": 3, "stage3_max_live_parameters": "auto", "offload_optimizer": {"device": "cpu"}}
    path.write_text(json.dumps({"zero_optimization": zero_section, "gradient_clipping": 1.0}), encoding="utf8")
    config = loading.read_inference_config(str(path), bf16=True)
    assert config["zero_optimization"] == {"stage": 3} and config["bf16"] == {"enabled": True}
    assert "gradient_clipping" not in config
    path.write_text(json.dumps({"zero_optimization": 3}), encoding="utf8")
    with pytest.raises(UserError):
        loading.read_inference_config(str(path), bf16=False)
