"""Qwen3: LLaMA with norms on queries and keys. They have the size of a head, and all heads share them."""

from __future__ import annotations

from functools import partial

from apt_ds.models.architectures import decoder
from apt_ds.models.export import modeling_apt_qwen3

ARCHITECTURE = decoder.architecture(
    "qwen3", "Qwen3", modeling_apt_qwen3, blocks=partial(decoder.blocks, whole=("q_norm", "k_norm")), title="Qwen3"
)
