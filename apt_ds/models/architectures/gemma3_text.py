"""Gemma 3, the language model alone: Gemma 2 with normalised queries and keys, and two kinds of rotary positions."""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig

from apt_ds.models.architectures import gemma2
from apt_ds.models.blocks import Anatomy, IndexedModule
from apt_ds.models.export import modeling_apt_gemma3


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a Gemma 2. All heads share the norms of queries and keys, which therefore stay whole."""
    table = gemma2.blocks(config, task)
    shared = [f"{layer}.self_attn.{norm}" for layer in table.layers for norm in ("q_norm", "k_norm")]
    return replace(table, slots=(*table.slots, *(IndexedModule(path, None) for path in shared)))


ARCHITECTURE = gemma2.architecture("gemma3_text", "Gemma3", modeling_apt_gemma3, blocks=blocks)
