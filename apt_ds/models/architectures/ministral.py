"""Ministral: Mistral with a list of the layers that have the sliding window."""

from __future__ import annotations

from apt_ds.models.architectures import decoder
from apt_ds.models.export import modeling_apt_ministral

ARCHITECTURE = decoder.architecture("ministral", "Ministral", modeling_apt_ministral, title="Ministral 8B")
