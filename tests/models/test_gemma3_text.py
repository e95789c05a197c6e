"""Gemma 3: the language model of a checkpoint that reads images, and the factor of its embeddings after a cut."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.architectures.gemma2 import scaled_embeddings
from apt_ds.models.architectures.gemma3_text import ARCHITECTURE
from apt_ds.models.base import find_base
from apt_ds.models.blocks import HIDDEN, block_slices
from apt_ds.models.export import write
from apt_ds.models.weights import read_weights
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.training.datasets import read_data
from tests.support import tiny, tiny_families
from tests.support.paths import ROOT

IMAGES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_language_model_is_read_without_the_parts_for_images(prefix: str, tmp_path: Path) -> None:
    """Versions of transformers name the weights differently."""
    text = tiny_families.config("gemma3").to_dict()
    sizes = {"image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
    config = Gemma3Config(text_config=text, vision_config=IMAGES | sizes, mm_tokens_per_image=4, image_token_index=99)
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name.replace("language_model.model.", prefix): value for name, value in weights.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    base = find_base(str(tmp_path))
    reader = ARCHITECTURE.training_classes[LANGUAGE_MODEL]
    model, missing = read_weights(base.source, torch.float32, "sdpa", config=base.config, model_class=reader)
    assert not missing and not any("vision" in name for name, _ in model.named_parameters())
    # the whole model takes the last id for an image
    tokens = tiny.ids() % 99
    torch.testing.assert_close(model.eval()(tokens).logits, whole(input_ids=tokens).logits)


def test_a_cut_of_hidden_dimensions_keeps_the_factor_and_the_export_folds_it(tmp_path: Path) -> None:
    model = tiny_families.model("gemma3")
    anatomy, base = anatomy_of(model.config), copy.deepcopy(model.config)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    keep[dict(block_slices(anatomy.sizes))[HIDDEN].start :][:16] = False
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    assert model.model.embed_tokens.embed_scale.item() == pytest.approx(32**0.5)
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.model.embed_tokens.embed_scale.item() == pytest.approx(4.0)
    torch.testing.assert_close(loaded.model.embed_tokens.weight, model.model.embed_tokens.weight * 2**0.5)
    torch.testing.assert_close(loaded.model.norm.weight + 1, (model.model.norm.weight + 1) / 2**0.5)
    assert scaled_embeddings(base, 32) == {} and set(scaled_embeddings(tiny_families.config("gemma3-untied"), 16)) == {
        "model.embed_tokens.weight"
    }


def test_an_encoder_of_the_same_model_type_is_refused() -> None:
    with pytest.raises(UserError, match="'gemma3_text' with use_bidirectional_attention is not supported: it is an"):
        anatomy_of(tiny_families.config("gemma3", use_bidirectional_attention=True))


def test_blocks_of_a_corpus_begin_with_the_token_that_gemma_needs(tmp_path: Path) -> None:
    for row, begins in (("gemma3", True), ("qwen3", False)):
        tiny_families.model(row).save_pretrained(tmp_path / row)
        tiny.tokenizer().save_pretrained(tmp_path / row)
        tiny.save_data(tmp_path / "data.json")
        (tmp_path / "text.txt").write_text("the cat sees a dog " * 20, encoding="utf8")
        words = ["--model_name_or_path", str(tmp_path / row), "--data_path", str(tmp_path / "data.json")]
        words += [
            "--deepspeed",
            str(ROOT / "ds_configs" / "zero2.json"),
            "--output_dir",
            str(tmp_path / "out"),
            "--perplexity_length",
            "10",
        ]
        run = resolve([*words, "--perplexity_path", str(tmp_path / "text.txt"), "--eval_size", "4"])
        texts = read_data(run, find_base(str(tmp_path / row))).texts
        assert list(texts) == ["text.txt"] and bool((texts["text.txt"][:, 0] == 1).all()) == begins
