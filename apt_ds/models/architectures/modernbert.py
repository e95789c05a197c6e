"""ModernBERT: pre-norm, fused projections, gated feed-forward, rotary positions, windows in some layers.

Wqkv holds queries, keys and values, Wi both halves of the gated feed-forward. The adapter targets q, k and v name
Wqkv, gate and up name Wi: one adapter serves the whole fused layer. The window is a mask and changes no block.
"""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION
from apt_ds.models.architectures import bert
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import (
    HIDDEN,
    Anatomy,
    Axis,
    IndexedModule,
    Sizes,
    Sublayer,
    fused_axis,
    head_params_per_hidden,
)
from apt_ds.models.export import apt_emptied_sublayers, apt_layer_sizes, modeling_apt_modernbert
from apt_ds.models.export.form import Written, by_layer, counts, square

LINEAR_HEADS = ("head.dense", "classifier")
TARGETS = {"q": "attn.Wqkv", "k": "attn.Wqkv", "v": "attn.Wqkv", "o": "attn.Wo"}
TARGETS |= {"gate": "mlp.Wi", "up": "mlp.Wi", "down": "mlp.Wo"}


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a ModernBERT. The first layer has no norm before its attention."""
    head_dim, hidden = config.hidden_size // config.num_attention_heads, Axis(HIDDEN)
    slots = [
        IndexedModule("model.embeddings.tok_embeddings", None, hidden),
        IndexedModule("model.embeddings.norm", hidden),
        IndexedModule("model.final_norm", hidden),
        IndexedModule("head.dense", hidden, hidden),
        IndexedModule("head.norm", hidden),
        IndexedModule("classifier", None, hidden),
    ]
    sites: list[Sublayer] = []
    layers = [f"model.layers.{i}" for i in range(config.num_hidden_layers)]
    for number, layer in enumerate(layers):
        sites += [
            Sublayer("head", f"{layer}.attn.Wo", head_dim, head_params_per_hidden(head_dim)),
            Sublayer("neuron", f"{layer}.mlp.Wo", 1, 3),
        ]
        slots += layer_slots(layer, number, head_dim)
    first = "model.embeddings.norm"
    norms = tuple(slot.path for slot in slots if slot.path.endswith("norm"))
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=(first, *(site.consumer for site in sites)),
        readers=tuple(f"{layer}.{name}" for name in ("attn.Wqkv", "mlp.Wi") for layer in layers),
        norms=norms,
        epsilon="eps",
        targets={short: tuple(f"{layer}.{name}" for layer in layers) for short, name in TARGETS.items()},
        layers=tuple(layers),
        sizes=Sizes((config.num_attention_heads, config.intermediate_size) * len(layers), config.hidden_size),
        layer_norm=True,
        # a LayerNorm gives removed dimensions a value, which nothing may read
        stream_wide=tuple(path for path in norms if path != first),
        task_heads=LINEAR_HEADS,
    )


def layer_slots(layer: str, number: int, head_dim: int) -> list[IndexedModule]:
    """The modules of layer `number` that blocks index. layer: its path. head_dim: columns of a head."""
    head, neuron, hidden = Axis(2 * number, head_dim), Axis(2 * number + 1), Axis(HIDDEN)
    own_norms = ("attn_norm", "mlp_norm") if number else ("mlp_norm",)
    return [
        *(IndexedModule(f"{layer}.{norm}", hidden) for norm in own_norms),
        IndexedModule(f"{layer}.attn.Wqkv", fused_axis(head.site, head_dim, head_dim, head_dim), hidden),
        IndexedModule(f"{layer}.attn.Wo", hidden, head),
        IndexedModule(f"{layer}.mlp.Wi", fused_axis(neuron.site, 1, 1), hidden),
        IndexedModule(f"{layer}.mlp.Wo", hidden, neuron),
    ]


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, stock: bool = True) -> Written:
    """Write a stock model if layers are equal and hidden_size is heads times head_dim. Others get sizes by layer."""
    heads, neurons, hidden = counts(anatomy, "head"), counts(anatomy, "neuron"), anatomy.sizes.hidden
    size = config.hidden_size // config.num_attention_heads
    config.hidden_size, config.num_attention_heads, config.intermediate_size = hidden, max(heads), max(neurons)
    if stock and square(anatomy, size):
        return Written(config)
    layers = {"layer_heads": heads, "layer_intermediate_sizes": neurons}
    adaptive = by_layer(config, modeling_apt_modernbert.AptModernBertConfig, head_dim=size, **layers)
    return Written(adaptive, (modeling_apt_modernbert, apt_layer_sizes, apt_emptied_sublayers))


HEADS = ("head.dense", "head.norm", "classifier")

ARCHITECTURE = Architecture(
    model_type="modernbert",
    title="ModernBERT",
    uniform_form=bert.ARCHITECTURE.uniform_form,
    tasks=bert.ARCHITECTURE.tasks,
    stock_classes={CLASSIFICATION: "ModernBertForSequenceClassification", ANSWERS: "ModernBertForQuestionAnswering"},
    blocks=blocks,
    export=export,
    modeling=modeling_apt_modernbert,
    task_heads=dict.fromkeys((CLASSIFICATION, ANSWERS), HEADS),
    special_tokens=bert.ARCHITECTURE.special_tokens,
)
