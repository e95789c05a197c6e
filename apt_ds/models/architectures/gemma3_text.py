"""Gemma 3, the language model alone: Gemma 2 with normalised queries and keys, and two kinds of rotary positions.

Checkpoints of 4B and more also read images. Their language model is trained and written without the other parts.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import Gemma3ForCausalLM, PretrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import gemma2
from apt_ds.models.blocks import Anatomy, IndexedModule
from apt_ds.models.export import modeling_apt_gemma3


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a Gemma 2. All heads share the norms of queries and keys, which therefore stay whole."""
    table = gemma2.blocks(config, task)
    shared = [f"{layer}.self_attn.{norm}" for layer in table.layers for norm in ("q_norm", "k_norm")]
    return replace(table, slots=(*table.slots, *(IndexedModule(path, None) for path in shared)))


class LanguageGemma3ForCausalLM(Gemma3ForCausalLM):
    """The stock class. It also reads the language model of a checkpoint that has parts for images."""


# names in a checkpoint of Gemma3ForConditionalGeneration, as different versions of transformers write them
PREFIXES = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
register_checkpoint_conversion_mapping(
    LanguageGemma3ForCausalLM.__name__,
    [WeightRenaming(source_patterns=old, target_patterns=new) for old, new in PREFIXES.items()],
    overwrite=True,
)

ARCHITECTURE = gemma2.architecture(
    "gemma3_text",
    "Gemma3",
    modeling_apt_gemma3,
    blocks=blocks,
    training_classes={LANGUAGE_MODEL: LanguageGemma3ForCausalLM},
    multimodal="gemma3",
    title="Gemma 3 (text)",
)
