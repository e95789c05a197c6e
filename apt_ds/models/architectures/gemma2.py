"""Gemma 2: LLaMA with a norm after each sublayer too, scaled embeddings, and softly capped scores and logits.

RMSNorm multiplies by 1 + weight. The output of the embedding is multiplied by the square root of the hidden size. A cut
model keeps the factor that its weights were trained with. The export moves the difference to the factor of the new
hidden size into the weights.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.option_groups import VARLEN
from apt_ds.models.architectures import decoder, llama
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule
from apt_ds.models.export import modeling_apt_gemma2
from apt_ds.models.export.form import Edits, Written
from apt_ds.models.logit_transform import LogitTransform
from apt_ds.models.writable_sizes import Writable


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a LLaMA, with the norms after sublayers as writers of the residual stream.

    Raises:
        UserError: the model attends to later tokens too.
    """
    if config.use_bidirectional_attention:
        raise UserError(
            f"architecture '{config.model_type}' with use_bidirectional_attention is not supported: "
            "it is an encoder, and the package trains decoders of this architecture"
        )
    table = decoder.blocks(config, task)
    after = [
        f"{layer}.{norm}"
        for layer in table.layers
        for norm in ("post_attention_layernorm", "post_feedforward_layernorm")
    ]
    before = [f"{layer}.{norm}" for layer in table.layers for norm in ("input_layernorm", "pre_feedforward_layernorm")]
    norms = (*before, "model.norm")
    others = [slot for slot in table.slots if not slot.path.endswith("norm")]
    return replace(
        table,
        slots=(*others, *(IndexedModule(path, Axis(HIDDEN)) for path in (*norms, *after))),
        writers=("model.embed_tokens", *after),
        norms=norms,
        weighted_norms=tuple(after),
        epsilon="eps",
    )


def logits(config: PretrainedConfig) -> LogitTransform:
    """The soft cap after the LM head, where the configuration has one."""
    return LogitTransform(cap=config.final_logit_softcapping)


def attention(config: PretrainedConfig, wanted: str) -> str:
    """Eager attention in place of sdpa, which has no soft cap for scores.

    Raises:
        UserError: the variable-length kernel is wanted, which has none either.
    """
    if wanted == VARLEN:
        raise UserError(
            f"--attn_implementation {wanted}: architecture '{config.model_type}' caps its attention scores, which this "
            "kernel cannot; give eager, or leave it out"
        )
    return "eager" if wanted == "sdpa" else wanted


def writable_sizes(config: PretrainedConfig) -> Writable:
    """The uniform sizes that the configuration classes of Gemma accept."""
    queries = config.num_attention_heads // config.num_key_value_heads

    def accepts(heads: np.ndarray, neurons: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return llama.is_llama_size(hidden, heads * queries) & (neurons > 0)

    return Writable(accepts, "Gemma needs a hidden size divisible by the query heads")


def scaled_embeddings(config: PretrainedConfig, hidden: int) -> Edits:
    """The edits after which embeddings times sqrt(`hidden`) are what they were, and logits too.

    A head that is tied to the embeddings takes the edit of the embeddings. The last norm then undoes it for the head.

    Args:
        config: the configuration before the cut.
        hidden: the hidden size after the cut.
    """
    factor = (config.hidden_size / hidden) ** 0.5
    if factor == 1.0:
        return {}
    edits: Edits = {"model.embed_tokens.weight": lambda weight: weight * factor}
    if config.tie_word_embeddings:
        edits["model.norm.weight"] = lambda weight: (1.0 + weight.float()) / factor - 1.0
    return edits


def export(
    model: nn.Module,
    config: PretrainedConfig,
    anatomy: Anatomy,
    modeling: ModuleType,
    adaptive: type[PretrainedConfig],
    stock: bool = True,
) -> Written:
    """Write equal layers as a stock model where its configuration accepts the sizes. Others get sizes by layer.

    modeling, adaptive: as in `decoder.adaptive_form`. stock: as in `Architecture.export`.
    """
    edits = scaled_embeddings(config, anatomy.sizes.hidden)
    stock = stock and decoder.equal_layers(anatomy) and writable_sizes(config).holds(anatomy)
    decoder.resize_config(config, anatomy)
    form = Written(config) if stock else decoder.adaptive_form(config, anatomy, modeling, adaptive)
    return replace(form, edits=edits)


def architecture(model_type: str, name: str, modeling: ModuleType, **differences: Any) -> Architecture:
    """The spec of a Gemma. Arguments are those of `decoder.architecture`."""
    fields: dict[str, Any] = {
        "blocks": blocks,
        "export": partial(export, modeling=modeling, adaptive=getattr(modeling, f"Apt{name}Config")),
        "writable": writable_sizes,
        "logits": logits,
        "begins_with_bos": True,
        "uniform_form": "its own stock class, with a hidden size that the heads divide",
    }
    return decoder.architecture(model_type, name, modeling, **fields | differences)


ARCHITECTURE = architecture("gemma2", "Gemma2", modeling_apt_gemma2, attention=attention, title="Gemma 2")
