"""Qwen2 and Qwen2.5: LLaMA with biases on query, key and value, and a sliding window in some layers."""

from __future__ import annotations

from apt_ds.models.architectures import decoder
from apt_ds.models.export import modeling_apt_qwen2

ARCHITECTURE = decoder.architecture("qwen2", "Qwen2", modeling_apt_qwen2, title="Qwen2, Qwen2.5")
