"""Phi-3, Phi-3.5 and Phi-4 mini: LLaMA with joined projections.

The files have one weight for query, key and value, and one for gate and up. The trained model splits them as it reads
them, so that each projection has its own blocks and its own adapter. The export joins them again.

With longrope, transformers chooses the factors of all rows by the longest text of a micro-batch. Where some texts are
longer than `original_max_position_embeddings` and others are not, scores depend on the split into micro-batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, ConversionOps, WeightConverter

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import decoder
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export import modeling_apt_phi3
from apt_ds.models.export.form import Written
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable

# sublayer: the joined layer, and its parts in the order of their rows
JOINED = {"self_attn": ("qkv_proj", ("q_proj", "k_proj", "v_proj")), "mlp": ("gate_up_proj", ("gate_proj", "up_proj"))}


class SplitRows(ConversionOps):
    """Splits a joined weight as a file is read. The configuration gives the sizes: the model's may be sharded."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        config: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The joined weight -> its parts, by their patterns."""
        (joined,) = input_dict.values()
        weight: Tensor = joined[0] if isinstance(joined, list) else joined
        size = decoder.head_dim_of(config)
        heads, groups = config.num_attention_heads * size, config.num_key_value_heads * size
        ends = [heads, heads + groups] if len(target_patterns) == 3 else [config.intermediate_size]
        # a weight of another shape makes a part of another shape, which the loader reports
        parts = weight.tensor_split(ends)
        return {name: part.contiguous() for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        """What `save_pretrained` does."""
        return Concatenate(dim=0)


register_checkpoint_conversion_mapping(
    modeling_apt_phi3.SplitPhi3ForCausalLM.__name__,
    [
        WeightConverter(f"{sublayer}.{whole}.weight", [f"{sublayer}.{part}.weight" for part in parts], [SplitRows()])
        for sublayer, (whole, parts) in JOINED.items()
    ],
    overwrite=True,
)


def joined_weights(anatomy: Anatomy) -> dict[str, tuple[str, ...]]:
    """Each joined weight of all layers to its parts, in the order of their rows."""
    return {
        f"{layer}.{sublayer}.{whole}.weight": tuple(f"{layer}.{sublayer}.{part}.weight" for part in parts)
        for layer in anatomy.layers
        for sublayer, (whole, parts) in JOINED.items()
    }


def writable_sizes(config: PretrainedConfig) -> Writable:
    """The uniform sizes that Phi3Config accepts. It checks the factors of longrope against hidden_size / heads."""
    rope = config.rope_parameters
    if "short_factor" not in rope and "long_factor" not in rope:
        return EVERY_SIZE
    queries, partial = config.num_attention_heads // config.num_key_value_heads, rope["partial_rotary_factor"]
    factors = int(decoder.head_dim_of(config) * partial) // 2

    def accepts(heads: np.ndarray, neurons: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return ((hidden // (heads * queries) * partial).astype(int) // 2 == factors) & (neurons > 0)

    return Writable(accepts, "Phi-3 with longrope needs hidden_size / query heads to stay the size of a head")


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, stock: bool = True) -> Written:
    """Write equal layers as a stock Phi-3, with joined weights. Others get sizes by layer and split weights."""
    stock = stock and decoder.equal_layers(anatomy) and writable_sizes(config).holds(anatomy)
    decoder.resize_config(config, anatomy)
    if stock:
        return Written(config, joined=joined_weights(anatomy))
    return decoder.adaptive_form(config, anatomy, modeling_apt_phi3, modeling_apt_phi3.AptPhi3Config)


ARCHITECTURE = decoder.architecture(
    "phi3",
    "Phi3",
    modeling_apt_phi3,
    export=export,
    writable=writable_sizes,
    training_classes={LANGUAGE_MODEL: modeling_apt_phi3.SplitPhi3ForCausalLM},
    title="Phi-3, Phi-3.5, Phi-4 mini",
    joined=joined_weights,
    uniform_form="its own stock class; with longrope only if hidden size / heads stays",
)
