"""Granite: LLaMA with constant factors on embeddings, residuals and attention, which a cut leaves as they are."""

from __future__ import annotations

from apt_ds.models.architectures import decoder
from apt_ds.models.export import modeling_apt_granite

ARCHITECTURE = decoder.architecture("granite", "Granite", modeling_apt_granite)
