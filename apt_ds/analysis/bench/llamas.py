"""The configurations of published LLaMA models, by name: their sizes, position embeddings and embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import LlamaConfig


class Sizes(NamedTuple):
    """The sizes of a LLaMA.

    Attributes:
        hidden: The hidden size.
        inner: The neurons of a feed-forward layer.
        layers: The layers.
        heads: The query heads of a layer.
        groups: The key/value heads of a layer.
        head_dim: The size of an attention head.
        vocabulary: The number of token ids.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int
    head_dim: int
    vocabulary: int


def _llama3_rope(factor: float) -> dict[str, Any]:
    """The position embeddings of LLaMA 3.1 and later, for `factor` times the positions of LLaMA 3."""
    reach = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, **reach}


def _rope(theta: float) -> dict[str, Any]:
    """Plain position embeddings."""
    return {"rope_type": "default", "rope_theta": theta}


# sizes, positions, rope parameters, epsilon of the norms, whether the LM head shares the embeddings
LLAMAS: dict[str, tuple[Sizes, int, dict[str, Any], float, bool]] = {
    "llama2-7b": (Sizes(4096, 11008, 32, 32, 32, 128, 32000), 4096, _rope(1e4), 1e-5, False),
    "llama2-13b": (Sizes(5120, 13824, 40, 40, 40, 128, 32000), 4096, _rope(1e4), 1e-5, False),
    "llama2-70b": (Sizes(8192, 28672, 80, 64, 8, 128, 32000), 4096, _rope(1e4), 1e-5, False),
    "codellama-34b": (Sizes(8192, 22016, 48, 64, 8, 128, 32000), 16384, _rope(1e6), 1e-5, False),
    "llama3-8b": (Sizes(4096, 14336, 32, 32, 8, 128, 128256), 8192, _rope(5e5), 1e-5, False),
    "llama3.2-1b": (Sizes(2048, 8192, 16, 32, 8, 64, 128256), 131072, _llama3_rope(32.0), 1e-5, True),
    "llama3.2-3b": (Sizes(3072, 8192, 28, 24, 8, 128, 128256), 131072, _llama3_rope(32.0), 1e-5, True),
    "tinyllama-1.1b": (Sizes(2048, 5632, 22, 32, 4, 64, 32000), 2048, _rope(1e4), 1e-5, False),
    "smollm2-360m": (Sizes(960, 2560, 32, 15, 5, 64, 49152), 8192, _rope(1e5), 1e-5, True),
    "smollm2-1.7b": (Sizes(2048, 8192, 24, 32, 32, 64, 49152), 8192, _rope(1.3e5), 1e-5, True),
    "yi-6b": (Sizes(4096, 11008, 32, 32, 4, 128, 64000), 4096, _rope(5e6), 1e-5, False),
    "yi-34b": (Sizes(7168, 20480, 60, 56, 8, 128, 64000), 4096, _rope(5e6), 1e-5, False),
    "deepseek-7b": (Sizes(4096, 11008, 30, 32, 32, 128, 102400), 4096, _rope(1e4), 1e-6, False),
}


def llama_config(name: str, **changes: Any) -> LlamaConfig:
    """The configuration of one of `LLAMAS`. `changes` replace values of the published model."""
    sizes, positions, rope, epsilon, tied = LLAMAS[name]
    values: dict[str, Any] = {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.groups,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": positions,
        "rope_parameters": dict(rope),
        "rms_norm_eps": epsilon,
        "tie_word_embeddings": tied,
    }
    return LlamaConfig(**(values | changes))
