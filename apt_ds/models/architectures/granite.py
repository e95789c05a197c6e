"""Granite: LLaMA with constant factors on embeddings, residuals, attention and logits. A cut leaves them alone."""

from __future__ import annotations

from transformers import PretrainedConfig

from apt_ds.models.architectures import decoder
from apt_ds.models.export import modeling_apt_granite
from apt_ds.models.logit_transform import LogitTransform


def logits(config: PretrainedConfig) -> LogitTransform:
    """The output of the LM head is divided by `logits_scaling`."""
    return LogitTransform(scale=1 / config.logits_scaling)


ARCHITECTURE = decoder.architecture("granite", "Granite", modeling_apt_granite, logits=logits, title="Granite 3")
