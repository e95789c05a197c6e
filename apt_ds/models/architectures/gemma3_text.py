"""Gemma 3, the language model alone: Gemma 2 with normalised queries and keys, and two kinds of rotary positions."""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import gemma2
from apt_ds.models.architectures.spec import every_attention
from apt_ds.models.blocks import Anatomy, IndexedModule


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a Gemma 2. All heads share the norms of queries and keys, which therefore stay whole."""
    table = gemma2.blocks(config, task)
    shared = [f"{layer}.self_attn.{norm}" for layer in table.layers for norm in ("q_norm", "k_norm")]
    return replace(table, slots=(*table.slots, *(IndexedModule(path, None) for path in shared)))


ARCHITECTURE = replace(
    gemma2.ARCHITECTURE,
    model_type="gemma3_text",
    stock_classes={LANGUAGE_MODEL: "Gemma3ForCausalLM"},
    blocks=blocks,
    attention=every_attention,
)
