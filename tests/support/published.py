"""The shapes of published decoders, by name: configurations with two layers."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

# configuration class, hidden size, neurons, query heads, key/value heads, and what else is special
Shape = tuple[type[PretrainedConfig], int, int, int, int, dict[str, Any]]
TIED = {"tie_word_embeddings": True}
GRANITE = TIED | {"embedding_multiplier": 12.0, "residual_multiplier": 0.22}
# Phi-3 mini 128k has 48 factors, Phi-4 mini has 48 for three quarters of a larger head
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
LONG |= {"original_max_position_embeddings": 4096, "partial_rotary_factor": 1.0}
PHI = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_parameters": LONG}
PHI_4 = TIED | PHI | {"rope_parameters": LONG | {"partial_rotary_factor": 0.75}}
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
    "gemma-2-2b": (Gemma2Config, 2304, 9216, 8, 4, {"head_dim": 256}),
    "gemma-2-9b": (Gemma2Config, 3584, 14336, 16, 8, {"head_dim": 256}),
    "gemma-2-27b": (Gemma2Config, 4608, 36864, 32, 16, {"head_dim": 128, "query_pre_attn_scalar": 144}),
    "gemma-3-270m": (Gemma3TextConfig, 640, 2048, 4, 1, {"head_dim": 256, "sliding_window": 512}),
    "gemma-3-1b": (Gemma3TextConfig, 1152, 6912, 4, 1, {"head_dim": 256, "sliding_window": 512}),
    "gemma-3-4b": (Gemma3TextConfig, 2560, 10240, 8, 4, {"head_dim": 256, "sliding_window": 1024}),
    "gemma-3-12b": (Gemma3TextConfig, 3840, 15360, 16, 8, {"head_dim": 256, "sliding_window": 1024}),
    "gemma-3-27b": (Gemma3TextConfig, 5376, 21504, 32, 16, {"head_dim": 128, "query_pre_attn_scalar": 168}),
    "olmo-2-1b": (Olmo2Config, 2048, 8192, 16, 16, {}),
    "olmo-2-7b": (Olmo2Config, 4096, 11008, 32, 32, {}),
    "olmo-2-13b": (Olmo2Config, 5120, 13824, 40, 40, {}),
    "olmo-2-32b": (Olmo2Config, 5120, 27648, 40, 8, {}),
    "phi-3-mini-4k": (Phi3Config, 3072, 8192, 32, 32, {"sliding_window": 2047}),
    "phi-3-mini-128k": (Phi3Config, 3072, 8192, 32, 32, PHI),
    "phi-3-medium-4k": (Phi3Config, 5120, 17920, 40, 10, {"sliding_window": 2047}),
    "phi-4-mini": (Phi3Config, 3072, 8192, 24, 8, PHI_4),
}


def published_config(name: str) -> PretrainedConfig:
    """The configuration of a published shape with two layers."""
    config_class, hidden, neurons, heads, groups, special = SHAPES[name]
    sizes = {"hidden_size": hidden, "intermediate_size": neurons, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": groups}
    return config_class(**sizes, **special, dtype="bfloat16", attention_dropout=0.1)
