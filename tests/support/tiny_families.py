"""Tiny decoders, one row per family or variant of it. The laws of `tests/models/test_families.py` run on every row.

A row is a name and a function that makes the configuration. It has what is special about the published models: ratios
of heads, head sizes that are not hidden_size / heads, tied embeddings, biases, windows shorter than the texts, layers
without positions, factors. Sizes are small: 2 to 4 layers, and the vocabulary of `tiny.tokenizer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import architecture_of
from tests.support import tiny

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": len(tiny.SPECIAL) + len(tiny.WORDS) + 200,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def llama3() -> PretrainedConfig:
    """LLaMA 3.2: rotary positions of type `llama3`, tied."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 16
    return LlamaConfig(**COMMON | {"tie_word_embeddings": True, "rope_parameters": rope})


def mistral_window() -> PretrainedConfig:
    """Mistral 7B v0.1: a window, here shorter than the texts."""
    return MistralConfig(**COMMON, sliding_window=4)


def mistral_nemo() -> PretrainedConfig:
    """Mistral Nemo: no window. The heads together are narrower than the stream, as 32 x 128 of 5120."""
    return MistralConfig(**COMMON | {"hidden_size": 40}, head_dim=4, sliding_window=None)


def ministral() -> PretrainedConfig:
    """Ministral 8B: windows in some layers only."""
    return MinistralConfig(**COMMON, head_dim=6, sliding_window=4, layer_types=["full_attention", "sliding_attention"])


def qwen2() -> PretrainedConfig:
    """Qwen2.5 0.5B: biases, 7 query heads per key/value head, tied."""
    return Qwen2Config(**COMMON | {"hidden_size": 56, "num_attention_heads": 14, "num_key_value_heads": 2} | TIED)


def qwen2_window() -> PretrainedConfig:
    """Qwen2: windows above `max_window_layers`."""
    return Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=4, max_window_layers=1)


def qwen3() -> PretrainedConfig:
    """Qwen3 0.6B: norms of queries and keys. The heads together are wider than the stream, tied."""
    return Qwen3Config(**COMMON | TIED, head_dim=8)


def smollm3() -> PretrainedConfig:
    """SmolLM3 3B: every fourth layer has no positions, 4 query heads per key/value head, tied."""
    return SmolLM3Config(**COMMON | TIED | {"num_hidden_layers": 4, "num_key_value_heads": 2})


def granite() -> PretrainedConfig:
    """Granite 3: factors on embeddings, residuals, attention and logits, tied."""
    factors = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.3}
    return GraniteConfig(**COMMON | TIED | factors, logits_scaling=8.0)


def gemma2() -> PretrainedConfig:
    """Gemma 2 2B: windows in every other layer, soft caps, heads wider than hidden_size / heads, tied."""
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 12}
    return Gemma2Config(**COMMON | TIED | caps, head_dim=8, sliding_window=4)


def gemma3() -> PretrainedConfig:
    """Gemma 3 270M and 1B: one global layer, which has positions of its own, norms of queries and keys, tied."""
    rope = {name: {"rope_type": "default", "rope_theta": theta} for name, theta in (("full_attention", 1e6), WINDOW)}
    layers = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(
        **COMMON | TIED,
        head_dim=8,
        query_pre_attn_scalar=12,
        sliding_window=4,
        layer_types=layers,
        rope_parameters=rope,
    )


def gemma3_untied() -> PretrainedConfig:
    """Gemma 3 with a head of its own."""
    return Gemma3TextConfig(**COMMON, head_dim=6, query_pre_attn_scalar=6, sliding_window=4)


def olmo2() -> PretrainedConfig:
    """OLMo 2 7B: norms after sublayers, queries and keys normalised over all heads."""
    return Olmo2Config(**COMMON | {"num_key_value_heads": 8, "num_attention_heads": 8})


def olmo2_groups() -> PretrainedConfig:
    """OLMo 2 32B: key/value groups."""
    return Olmo2Config(**COMMON)


def phi3() -> PretrainedConfig:
    """Phi-3 mini 4k: joined projections, a window."""
    return Phi3Config(**COMMON | {"num_key_value_heads": 8}, sliding_window=6)


def phi4() -> PretrainedConfig:
    """Phi-4 mini: joined projections of groups, positions of type `longrope` on a part of each head, tied."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75}
    rope |= {"short_factor": [1.0, 1.5, 2.0], "long_factor": [1.0, 4.0, 9.0], "original_max_position_embeddings": 8}
    return Phi3Config(**COMMON | TIED | {"hidden_size": 64}, rope_parameters=rope, original_max_position_embeddings=8)


TIED = {"tie_word_embeddings": True}
WINDOW = ("sliding_attention", 1e4)
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama3": llama3,
    "mistral-window": mistral_window,
    "mistral-nemo": mistral_nemo,
    "ministral": ministral,
    "qwen2": qwen2,
    "qwen2-window": qwen2_window,
    "qwen3": qwen3,
    "smollm3": smollm3,
    "granite": granite,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma3-untied": gemma3_untied,
    "olmo2": olmo2,
    "olmo2-groups": olmo2_groups,
    "phi3": phi3,
    "phi4": phi4,
}

# rows whose uniform export has another class: LlamaConfig refuses the odd sizes of the test
WRITTEN_AS = {"llama3": "MistralForCausalLM", "qwen2": "GraniteForCausalLM"}
# variants that are equal to another row where the base is quantized
SMALL_ONLY = ("mistral-nemo", "qwen2-window", "gemma3-untied", "olmo2", "phi4")
# model types without a stock class for sequence classification
NO_CLASSIFIER = ("granite",)


def config(name: str, **changes: object) -> PretrainedConfig:
    """The configuration of a row with other values."""
    base = FAMILIES[name]()
    return type(base)(**base.to_dict() | changes) if changes else base


def model(name: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """An fp32 model of the class that is trained. Norms, biases and weights are far from their initial values."""
    torch.manual_seed(seed)
    values = config(name, **changes)
    model = architecture_of(values).empty_model(values, LANGUAGE_MODEL, torch.float32, "sdpa").eval()
    # norms of Gemma multiply by 1 + weight
    middle = 0.0 if values.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path and path.endswith("weight"):
                parameter.uniform_(middle - 0.5, middle + 0.5)
            else:
                parameter.normal_(0, 0.15)
    return model
