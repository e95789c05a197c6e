"""The shapes of published decoders, by name: configurations with two layers."""

from __future__ import annotations

from typing import Any

from transformers import (
    GraniteConfig,
    MinistralConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

# configuration class, hidden size, neurons, query heads, key/value heads, and what else is special
Shape = tuple[type[PretrainedConfig], int, int, int, int, dict[str, Any]]
TIED = {"tie_word_embeddings": True}
GRANITE = TIED | {"embedding_multiplier": 12.0, "residual_multiplier": 0.22}
SHAPES: dict[str, Shape] = {
    "mistral-7b-v0.1": (MistralConfig, 4096, 14336, 32, 8, {"sliding_window": 4096}),
    "mistral-7b-v0.3": (MistralConfig, 4096, 14336, 32, 8, {"sliding_window": None}),
    "mistral-nemo-12b": (MistralConfig, 5120, 14336, 32, 8, {"sliding_window": None, "head_dim": 128}),
    "ministral-8b": (MinistralConfig, 4096, 12288, 32, 8, {"sliding_window": 32768, "head_dim": 128}),
    "qwen2.5-0.5b": (Qwen2Config, 896, 4864, 14, 2, TIED),
    "qwen2.5-1.5b": (Qwen2Config, 1536, 8960, 12, 2, TIED),
    "qwen2.5-3b": (Qwen2Config, 2048, 11008, 16, 2, TIED),
    "qwen2.5-7b": (Qwen2Config, 3584, 18944, 28, 4, {}),
    "qwen2.5-14b": (Qwen2Config, 5120, 13824, 40, 8, {}),
    "qwen2.5-32b": (Qwen2Config, 5120, 27648, 40, 8, {}),
    "qwen2.5-72b": (Qwen2Config, 8192, 29568, 64, 8, {}),
    "qwen3-0.6b": (Qwen3Config, 1024, 3072, 16, 8, TIED | {"head_dim": 128}),
    "qwen3-1.7b": (Qwen3Config, 2048, 6144, 16, 8, TIED | {"head_dim": 128}),
    "qwen3-4b": (Qwen3Config, 2560, 9728, 32, 8, TIED | {"head_dim": 128}),
    "qwen3-8b": (Qwen3Config, 4096, 12288, 32, 8, {"head_dim": 128}),
    "qwen3-14b": (Qwen3Config, 5120, 17408, 40, 8, {"head_dim": 128}),
    "qwen3-32b": (Qwen3Config, 5120, 25600, 64, 8, {"head_dim": 128}),
    "smollm3-3b": (SmolLM3Config, 2048, 11008, 16, 4, TIED),
    "granite-3-2b": (
        GraniteConfig,
        2048,
        8192,
        32,
        8,
        GRANITE | {"attention_multiplier": 1 / 64, "logits_scaling": 8.0},
    ),
    "granite-3-8b": (
        GraniteConfig,
        *(4096, 12800, 32, 8),
        GRANITE | {"attention_multiplier": 1 / 128, "logits_scaling": 16.0},
    ),
}


def published_config(name: str) -> PretrainedConfig:
    """The configuration of a published shape with two layers."""
    config_class, hidden, neurons, heads, groups, special = SHAPES[name]
    sizes = {"hidden_size": hidden, "intermediate_size": neurons, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": groups}
    return config_class(**sizes, **special, dtype="bfloat16", attention_dropout=0.1)
