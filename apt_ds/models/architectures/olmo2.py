"""OLMo 2: LLaMA with norms after sublayers instead of before them, and queries and keys normalised over all heads."""

from __future__ import annotations

from dataclasses import replace

from transformers import PretrainedConfig

from apt_ds.models.architectures import decoder
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule
from apt_ds.models.export import modeling_apt_olmo2


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a LLaMA, with the norms after sublayers as writers of the residual stream.

    The norms of queries and keys lose the entries of a head with the head.
    """
    table = decoder.blocks(config, task)
    after = [
        f"{layer}.{norm}"
        for layer in table.layers
        for norm in ("post_attention_layernorm", "post_feedforward_layernorm")
    ]
    rows = {slot.path: slot.rows for slot in table.slots}
    over_heads = [
        IndexedModule(f"{layer}.self_attn.{short}_norm", rows[f"{layer}.self_attn.{short}_proj"])
        for layer in table.layers
        for short in "qk"
    ]
    others = [slot for slot in table.slots if not slot.path.endswith("norm")]
    norms = (IndexedModule(path, Axis(HIDDEN)) for path in ("model.norm", *after))
    return replace(
        table,
        slots=(*others, *norms, *over_heads),
        writers=("model.embed_tokens", *after),
        norms=("model.norm",),
        weighted_norms=(*after, *(norm.path for norm in over_heads)),
    )


ARCHITECTURE = decoder.architecture("olmo2", "Olmo2", modeling_apt_olmo2, blocks=blocks, title="OLMo 2")
