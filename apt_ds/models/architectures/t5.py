"""T5: pre-norm, gated or plain feed-forward, an encoder and a decoder that share hidden dimensions.

The relative position bias follows its heads. A stack computes the bias once, in its first layer, and passes it to all
others. Other layers may still have heads that the first one has lost, so the bias table stays whole, and an attention
that has lost heads picks its own. Stock T5 does so with the attention kernel registered here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.t5.modeling_t5 import eager_attention_forward

from apt_ds.config.tasks import GENERATION, GLUE_TASKS, TEXTS
from apt_ds.models import position_bias
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule, Sizes, Sublayer, head_params_per_hidden
from apt_ds.models.export import modeling_apt_t5
from apt_ds.models.export.form import Edits, Written, alike, by_layer, counts
from apt_ds.models.export.padding import Padding

KERNEL = "apt_by_head"


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a T5ForConditionalGeneration. The table of the position bias is in no block: it stays whole."""
    hidden = Axis(HIDDEN)
    ups = {"up": "wi_0", "gate": "wi_1"} if config.is_gated_act else {"up": "wi"}
    slots = [
        IndexedModule(path, None, hidden)
        for path in ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    ]
    sites: list[Sublayer] = []
    layers: list[str] = []
    for stack, depth in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        stack_layers = [f"{stack}.block.{i}" for i in range(depth)]
        stack_sites, stack_slots = _stack(config, stack, stack_layers, tuple(ups.values()), len(sites))
        sites, slots, layers = sites + stack_sites, slots + stack_slots, layers + stack_layers
    targets: dict[str, list[str]] = {short: [] for short in ("q", "k", "v", "o", *ups, "down")}
    for site in sites:
        names = {short: short for short in "qkvo"} if site.kind == "head" else {**ups, "down": "wo"}
        for short, name in names.items():
            targets[short].append(f"{site.consumer.rpartition('.')[0]}.{name}")
    block_counts = {"head": config.num_heads, "neuron": config.d_ff}
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=("encoder.embed_tokens", "decoder.embed_tokens", *(site.consumer for site in sites)),
        readers=tuple(path for short in ("q", "k", "v", *ups) for path in targets[short]),
        norms=tuple(slot.path for slot in slots if slot.path.endswith("layer_norm")),
        epsilon="variance_epsilon",
        targets={short: tuple(paths) for short, paths in targets.items()},
        layers=tuple(layers),
        sizes=Sizes(tuple(block_counts[site.kind] for site in sites), config.d_model),
        decoder_prefix="decoder.",
        layer_outputs=3,
    )


def _stack(
    config: PretrainedConfig, stack: str, layers: list[str], ups: tuple[str, ...], first_site: int
) -> tuple[list[Sublayer], list[IndexedModule]]:
    """The sublayers of the encoder or the decoder, and its modules that blocks index.

    Args:
        config: the configuration of the model.
        stack: 'encoder' or 'decoder'.
        layers: paths of its layers.
        ups: names of the linear layers of a feed-forward network that read the stream.
        first_site: number of its first sublayer in the model.
    """
    attentions = ("SelfAttention",) if stack == "encoder" else ("SelfAttention", "EncDecAttention")
    params_per_hidden = head_params_per_hidden(config.d_kv)
    sites: list[Sublayer] = []
    slots = [
        IndexedModule(f"{stack}.final_layer_norm", Axis(HIDDEN)),
        IndexedModule(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias", None),
    ]
    for layer in layers:
        for number, name in enumerate(attentions):
            place = f"{layer}.layer.{number}"
            attention, head = f"{place}.{name}", Axis(first_site + len(sites), config.d_kv)
            sites.append(Sublayer("head", f"{attention}.o", config.d_kv, params_per_hidden, attention))
            slots += sublayer_slots(place, attention, head, ("q", "k", "v"), "o")
        place = f"{layer}.layer.{len(attentions)}"
        feed_forward, neuron = f"{place}.DenseReluDense", Axis(first_site + len(sites))
        sites.append(Sublayer("neuron", f"{feed_forward}.wo", 1, 1 + len(ups)))
        slots += sublayer_slots(place, feed_forward, neuron, ups, "wo")
    return sites, slots


def sublayer_slots(
    place: str, module: str, blocks: Axis, readers: tuple[str, ...], consumer: str
) -> list[IndexedModule]:
    """The modules of a sublayer that blocks index.

    Args:
        place: path of the sublayer with its norm.
        module: path of the attention or the feed-forward network.
        blocks: the axis of its blocks.
        readers: names of its layers that read the stream.
        consumer: the name of the layer that reads its blocks.
    """
    hidden = Axis(HIDDEN)
    return [
        IndexedModule(f"{place}.layer_norm", hidden),
        *(IndexedModule(f"{module}.{name}", blocks, hidden) for name in readers),
        IndexedModule(f"{module}.{consumer}", hidden, blocks),
    ]


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """T5's attention with the bias of the heads that `module` still has.

    Args:
        module: an attention with `heads`, its heads in the bias table.
        query: [batch, heads, queries, d_kv].
        key: [batch, heads, keys, d_kv].
        value: [batch, heads, keys, d_kv].
        attention_mask: additive mask, broadcast to [batch, heads, queries, keys].
        options: arguments of transformers' kernel. `position_bias` is [1, heads of the table, queries, keys].
    """
    heads = position_bias.heads_of(module)
    if options["position_bias"].shape[1] != len(heads):
        options["position_bias"] = options["position_bias"].index_select(1, heads)
    return eager_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register(KERNEL, attend)
AttentionMaskInterface.register(KERNEL, eager_mask)


def prepare(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Tell every attention with a position bias its heads, which are all of them, and use the kernel above."""
    position_bias.number_heads(model, anatomy)
    model.set_attn_implementation(KERNEL)


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, stock: bool = True) -> Written:
    """Write a stock T5 if layers are equal and all self-attentions of a stack have the same heads: they share a bias.

    stock: as in `Architecture.export`.
    """
    paths = [site.position_bias for site in anatomy.sites if site.position_bias]
    kept = [position_bias.heads_of(model.get_submodule(path)).tolist() for path in paths]
    neurons, depth = counts(anatomy, "neuron"), config.num_layers
    encoder, decoder, cross = kept[:depth], kept[depth::2], [len(heads) for heads in kept[depth + 1 :: 2]]
    edits = scale_edit(config, anatomy)
    config.d_model, config.d_ff = anatomy.sizes.hidden, max(neurons)
    shared = [all(heads == stack[0] for heads in stack) for stack in (encoder, decoder)]
    if stock and all(shared) and alike([len(heads) for heads in kept]) and alike(neurons):
        config.num_heads = len(kept[0])
        tables = [slot.path for slot in anatomy.slots if slot.rows is None and slot.columns is None]
        for path, heads in zip(tables, (encoder[0], decoder[0]), strict=True):
            edits[f"{path}.weight"] = columns(heads)
        return Written(config, edits=edits)
    layers = {"encoder_layer_heads": encoder, "decoder_layer_heads": decoder, "decoder_layer_cross_heads": cross}
    sizes = {"encoder_layer_d_ff": neurons[:depth], "decoder_layer_d_ff": neurons[depth:]}
    return Written(by_layer(config, modeling_apt_t5.AptT5Config, **layers, **sizes), (modeling_apt_t5,), edits)


def padded(model: nn.Module, config: PretrainedConfig, whole: Anatomy, anatomy: Anatomy) -> Written:
    """Write a stock T5 with zeros in place of removed blocks. A head stays at its column of its stack's bias table.

    A stack has the heads that any of its self-attentions keeps, and more where the other stack has more.
    """
    sites = {site: sublayer for site, sublayer in enumerate(anatomy.sites) if sublayer.position_bias}
    kept = {n: position_bias.heads_of(model.get_submodule(site.position_bias)).tolist() for n, site in sites.items()}
    stacks = {n: "cross" if "EncDec" in site.consumer else site.consumer.split(".")[0] for n, site in sites.items()}
    union = {
        stack: sorted({head for number, heads in kept.items() if stacks[number] == stack for head in heads})
        for stack in ("encoder", "decoder")
    }
    crossing = max(len(kept[number]) for number, stack in stacks.items() if stack == "cross")
    count = max(crossing, *map(len, union.values()))
    tables = {}
    for stack, heads in union.items():
        others = [head for head in range(config.num_heads) if head not in heads]
        tables[stack] = sorted([*heads, *others[: count - len(heads)]])
    places = {
        number: np.searchsorted(tables[stacks[number]], heads)
        for number, heads in kept.items()
        if stacks[number] in tables
    }
    neurons = max(counts(anatomy, "neuron"))
    numbers = tuple(count if site.kind == "head" else neurons for site in anatomy.sites)
    edits = scale_edit(config, anatomy)
    for stack, heads in tables.items():
        edits[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = columns(heads)
    config.d_model, config.d_ff, config.num_heads = anatomy.sizes.hidden, neurons, count
    padding = Padding(whole, anatomy, Sizes(numbers, anatomy.sizes.hidden), places)
    return Written(config, edits=edits, padding=padding)


def scale_edit(config: PretrainedConfig, anatomy: Anatomy) -> Edits:
    """The original T5 scales its output by d_model. Where hidden dimensions were cut, the last norm keeps the scale."""
    if not config.scale_decoder_outputs or anatomy.sizes.hidden == config.d_model:
        return {}
    factor = (anatomy.sizes.hidden / config.d_model) ** 0.5
    return {"decoder.final_layer_norm.weight": lambda weight: weight * factor}


def columns(kept: list[int]) -> Callable[[Tensor], Tensor]:
    """The edit that takes these columns of a weight."""
    return lambda weight: weight[:, torch.tensor(kept)].contiguous()


ARCHITECTURE = Architecture(
    model_type="t5",
    tasks=dict.fromkeys((*GLUE_TASKS, *TEXTS), GENERATION),
    stock_classes={GENERATION: "T5ForConditionalGeneration"},
    blocks=blocks,
    export=export,
    padded=padded,
    modeling=modeling_apt_t5,
    special_tokens=("eos_token", "pad_token"),
    prepare=prepare,
    title="T5, T5 v1.1",
    uniform_form="stock class if all layers keep the same heads, else modelling file",
)
