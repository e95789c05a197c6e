"""A Qwen2 whose heads or hidden dimensions were cut is written as a family of which vLLM reads `head_dim`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, Qwen2Tokenizer

from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.architectures.qwen2 import derives_head_dim, has_windows
from apt_ds.models.blocks import block_slices
from apt_ds.models.export import write
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.support import tiny, tiny_families

# kept head blocks, neurons and hidden dimensions of the row `qwen2`, and the class of the written model
CUTS = {
    "neurons": ((2, 24, 56), "Qwen2ForCausalLM"),
    "heads": ((1, 48, 56), "LlamaForCausalLM"),
    "hidden": ((2, 48, 42), "LlamaForCausalLM"),
    "refused by LlamaConfig": ((1, 24, 40), "GraniteForCausalLM"),
}


def cut(config: PretrainedConfig, sizes: tuple[int, int, int], folder: Path) -> PreTrainedModel:
    """A model with random biases, cut to the same sizes in every layer and written to `folder`."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    anatomy = anatomy_of(config)
    keep = np.zeros(anatomy.sizes.total(), dtype=bool)
    heads, neurons, hidden = sizes
    for site, span in block_slices(anatomy.sizes):
        number = {"head": heads, "neuron": neurons, "hidden": hidden}[anatomy.kind(site)]
        keep[span.stop - number : span.stop] = True
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    write.export(model, smaller, config, model.generation_config, tiny.tokenizer(), folder)
    return model


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_written_model_answers_as_the_cut_one(name: str, tied: bool, tmp_path: Path) -> None:
    sizes, stock = CUTS[name]
    model = cut(tiny_families.config("qwen2", tie_word_embeddings=tied), sizes, tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded).__name__ == stock and not list(tmp_path.glob("*.py"))
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(loaded(tiny.ids(2)).logits, model(tiny.ids(2)).logits, atol=2e-5, rtol=1e-5)
    written = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in written) != tied
    added = {weight for weight in written if weight.endswith("o_proj.bias")}
    assert len(added) == (0 if stock == "Qwen2ForCausalLM" else 2) and not any(written[n].any() for n in added)
    # what is written can be read and cut again
    assert anatomy_of(loaded.config).sizes.counts == sizes[:2] * 2
    assert architecture_of(loaded.config).stock_classes["language model"] == stock


def test_a_sliding_window_keeps_the_model_a_qwen2(tmp_path: Path) -> None:
    """LLaMA and Granite have no window."""
    config = tiny_families.config("qwen2-window")
    model = cut(config, (2, 48, 32), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert has_windows(loaded.config) and not derives_head_dim(loaded.config)
    assert type(loaded).__name__ == "Qwen2ForCausalLM"
    torch.testing.assert_close(loaded(tiny.ids(2)).logits, model(tiny.ids(2)).logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["heads", "refused by LlamaConfig"])
def test_a_qwen2_tokenizer_says_the_same_beside_another_family(name: str, tmp_path: Path) -> None:
    """Transformers chooses the class of a tokenizer by that of the configuration beside it."""
    cut(tiny_families.config("qwen2"), CUTS[name][0], tmp_path)
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ", "th", "he", "Ġth"]
    words = {word: number for number, word in enumerate(["<|endoftext|>", *letters])}
    tokenizer = Qwen2Tokenizer(vocab=words, merges=[("t", "h"), ("h", "e"), ("Ġ", "th")])
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text("utf8"))["model_type"] != "qwen2"
    read = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the theory", " a  the\nx", "<|endoftext|>then"):
        ids = tokenizer(text)["input_ids"]
        assert read(text)["input_ids"] == ids and read.decode(ids) == tokenizer.decode(ids)
