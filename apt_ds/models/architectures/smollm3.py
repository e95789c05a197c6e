"""SmolLM3: LLaMA with a list of the layers that have no rotary positions. No layer is removed, so the list stays."""

from __future__ import annotations

from apt_ds.models.architectures import decoder
from apt_ds.models.export import modeling_apt_smollm3

ARCHITECTURE = decoder.architecture("smollm3", "SmolLM3", modeling_apt_smollm3, title="SmolLM3")
