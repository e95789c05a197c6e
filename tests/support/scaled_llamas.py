"""Small models with the proportions of published LLaMAs."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

from apt_ds.analysis.bench.llamas import LLAMAS, llama_config


def scaled_config(name: str, head_dim: int = 8, **changes: Any) -> LlamaConfig:
    """One of `LLAMAS` with two layers and smaller heads. Their number is as published, other sizes shrink alike."""
    sizes = LLAMAS[name][0]
    factor = sizes.head_dim // head_dim
    small = {"hidden_size": sizes.hidden // factor, "intermediate_size": sizes.inner // factor, "head_dim": head_dim}
    return llama_config(name, **({"vocab_size": 256, "num_hidden_layers": 2} | small | changes))
