"""What llama.cpp cannot hold is one line before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from apt_ds.config.errors import UserError
from apt_ds.models.export import gguf_rules
from apt_ds.models.export.gguf import PHI_3_TOKENS, name_of, write_gguf

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
BY_LAYER = {"layer_key_value_heads": [2, 0], "layer_intermediate_sizes": [96, 32]}


def folder_of(place: Path, columns: int = 64, **changes: object) -> Path:
    """A folder with what the rules read."""
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(LLAMA | changes), encoding="utf8")
    (place / "tokenizer.json").write_text("{}", encoding="utf8")
    save_file({"model.layers.0.mlp.down_proj.weight": torch.zeros(4, columns)}, place / "model.safetensors")
    return place


def named(name: str, **changes: object) -> dict[str, object]:
    return {"architectures": [name], **changes}


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "a task head": (named("BertForSequenceClassification"), "decoders without a task head"),
    "T5": (named("T5ForConditionalGeneration"), "decoders without a task head"),
    "OLMoE": (named("OlmoeForCausalLM"), "does not give the answers"),
    "OLMo 2 by layer": (named("AptOlmo2ForCausalLM", **BY_LAYER), "no architecture with sizes by layer"),
    "Gemma 3 by layer": (named("AptGemma3ForCausalLM", **BY_LAYER), "no architecture with sizes by layer"),
    "experts by layer": (named("AptMixtralForCausalLM", layer_experts=[1, 2], **BY_LAYER), "experts by layer"),
    "OLMo 2, heads cut": (named("Olmo2ForCausalLM", head_dim=8), "32 is not 64"),
    "longrope by layer": (
        named("AptPhi3ForCausalLM", rope_parameters={"rope_type": "longrope"}, **BY_LAYER),
        "no rotary positions of type 'longrope'",
    ),
    "a part of each head": (
        named("AptPhi3ForCausalLM", rope_parameters={"partial_rotary_factor": 0.5}, **BY_LAYER),
        "rotates whole heads",
    ),
    "another activation": (named("AptLlamaForCausalLM", hidden_act="gelu", **BY_LAYER), "no activation 'gelu'"),
    "Qwen3 with a head": (named("AptQwen3ForCausalLM", tie_word_embeddings=False, **BY_LAYER), "tied embeddings"),
    "quantized": (named("LlamaForCausalLM", quantization_config={"quant_method": "x"}), "16-bit weights"),
    "Gemma 2 with a head": (named("Gemma2ForCausalLM", tie_word_embeddings=False), "head of its own"),
    "other windows": (named("Gemma2ForCausalLM", layer_types=["full_attention"] * 2), "another order"),
    "other positions": (named("SmolLM3ForCausalLM", no_rope_layers=[0, 1]), "another order"),
    "no class": ({"architectures": []}, "names no model class"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_line_before_anything_is_written(case: str, tmp_path: Path) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as error:
        write_gguf(folder_of(tmp_path / "model", **changes), "f16", tmp_path / "into" / "model.gguf")
    assert "\n" not in str(error.value) and not (tmp_path / "into").exists()


def test_a_model_without_whole_blocks_is_not_quantized(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "model", columns=50)
    for outtype in ("q8_0", "q4_k_m"):
        with pytest.raises(UserError, match=r"multiple of 32 weights, but no matrix has them \(rows of 50\)"):
            gguf_rules.plan_of(place, outtype)
    assert gguf_rules.plan_of(place, "f16").source == "LlamaForCausalLM"


def test_layers_of_a_folder_are_taken_over(tmp_path: Path) -> None:
    granite = {"residual_multiplier": 0.5, "attention_multiplier": 0.125, "embedding_multiplier": 12.0}
    changes = named("AptGraniteForCausalLM", logits_scaling=8.0, tie_word_embeddings=True, **granite, **BY_LAYER)
    plan = gguf_rules.plan_of(folder_of(tmp_path / "model", **changes), "f16")
    assert (plan.layout, plan.groups, plan.neurons, plan.queries_per_group) == ("deci", [2, 0], [96, 32], 2)
    assert plan.source == "GraniteForCausalLM" and plan.tied
    assert plan.scales == {"embed_tokens": 12.0, "q_proj": 0.5, "o_proj": 0.5, "down_proj": 0.5, "lm_head": 0.125}


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        (named("MistralForCausalLM", sliding_window=32), 32),
        (named("MistralForCausalLM", sliding_window=None), 0),
        (named("Qwen2ForCausalLM", sliding_window=32, use_sliding_window=False), 0),
        (named("Gemma3ForCausalLM", sliding_window=32), 0),
        (named("Phi3ForCausalLM", rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": 8}), 8),
    ],
)
def test_the_context_in_which_answers_agree(changes: dict[str, object], context: int, tmp_path: Path) -> None:
    assert gguf_rules.plan_of(folder_of(tmp_path / "model", **changes), "f16").context == context


def test_a_name_that_llama_cpp_would_read_as_phi_3(tmp_path: Path) -> None:
    """It changes four tokens of such a model, and fails without them."""
    place = folder_of(tmp_path / "Phi-3-cut")
    assert name_of(place) == "Phi 3-cut" and name_of(folder_of(tmp_path / "llama-3")) == "llama-3"
    added = {"added_tokens": [{"content": token} for token in PHI_3_TOKENS]}
    (place / "tokenizer.json").write_text(json.dumps(added), encoding="utf8")
    assert name_of(place) == "Phi-3-cut"


def test_gemmas_scale_of_attention(tmp_path: Path) -> None:
    """llama.cpp derives it from the size of a head, and for the largest Gemma 2 from hidden size and heads."""
    for layers, factor in ((2, (16 / 36) ** 0.5), (46, (64 // 4 / 36) ** 0.5)):
        config = LLAMA | {"num_hidden_layers": layers, "query_pre_attn_scalar": 36}
        assert gguf_rules.gemma_scales(config, "Gemma2ForCausalLM") == {"q_proj": pytest.approx(factor)}
    assert gguf_rules.gemma_scales(LLAMA | {"query_pre_attn_scalar": 16}, "Gemma3ForCausalLM") == {}


def test_a_decoder_with_other_fields_is_one_line(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "model")
    config = {"architectures": ["BloomForCausalLM"], "hidden_size": 64, "n_layer": 2}
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")
    with pytest.raises(UserError, match=r"its config\.json has no num_hidden_layers"):
        gguf_rules.plan_of(place, "f16")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": "four"}, "'num_attention_heads' is 'four'. It must be a number above 0"),
        ({"num_hidden_layers": None}, "has no num_hidden_layers"),
        ({"hidden_size": True}, "'hidden_size' is 'True'. It must be a number above 0"),
        ({"rope_parameters": [1]}, "'rope_parameters' is '[1]'. It must be an object"),
        ({"layer_types": "full"}, "'layer_types' is 'full'. It must be a list"),
        ({"architectures": "LlamaForCausalLM"}, "names no model class"),
    ],
)
def test_values_of_the_wrong_type_are_one_line(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        gguf_rules.plan_of(folder_of(tmp_path / "model", **changes), "f16")
    assert words in str(error.value)


def test_a_family_without_a_plan_of_its_own_may_have_lists_of_sizes(tmp_path: Path) -> None:
    sizes = {"intermediate_size": [96, 64], "num_key_value_heads": [2, 1]}
    place = folder_of(tmp_path / "model", **named("Gemma3nForCausalLM", **sizes))
    assert gguf_rules.plan_of(place, "f16").source == "Gemma3nForCausalLM"
    place = folder_of(tmp_path / "other", **named("LlamaForCausalLM", **sizes))
    with pytest.raises(UserError, match="'num_key_value_heads' is"):
        gguf_rules.plan_of(place, "f16")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": ', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "no list of tokens"),
        ('{"added_tokens": [3]}', "no list of tokens"),
    ],
)
def test_a_damaged_tokenizer_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    place = folder_of(tmp_path / "model")
    (place / "tokenizer.json").write_text(text, encoding="utf8")
    with pytest.raises(UserError, match=words):
        name_of(place)


def test_half_a_file_of_weights_is_one_line(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "model")
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        gguf_rules.columns_of(place)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    for name, text, words in (
        ("a", None, "no config.json"),
        ("b", "{", "not JSON"),
        ("c", "[]", "names no model class"),
    ):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "config.json").write_text(text, encoding="utf8")
        with pytest.raises(UserError, match=words):
            gguf_rules.plan_of(tmp_path / name, "f16")
    place = folder_of(tmp_path / "d")
    (place / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        gguf_rules.plan_of(place, "f16")
