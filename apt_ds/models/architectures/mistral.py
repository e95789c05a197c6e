"""Mistral: LLaMA whose attention may have a sliding window, which is a mask. Some LLaMAs are written as Mistrals."""

from __future__ import annotations

from apt_ds.models.architectures import decoder
from apt_ds.models.export import modeling_apt_mistral

ARCHITECTURE = decoder.architecture("mistral", "Mistral", modeling_apt_mistral, title="Mistral 7B, Mistral Nemo")
