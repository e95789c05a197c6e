"""What decoders with the modules of LLaMA share: their blocks, and how a cut one is written.

Pre-norm, gated feed-forward, multi-head or grouped-query attention. Biases are cut with the rows of their weight.
Positions, sliding windows and constant factors of a family need nothing here.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.tasks import INSTRUCTIONS, LANGUAGE_MODEL
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule, Sizes, Sublayer, head_params_per_hidden
from apt_ds.models.export import apt_emptied_sublayers, apt_layer_sizes
from apt_ds.models.export.apt_emptied_sublayers import EmptiedAttention, EmptiedFeedForward
from apt_ds.models.export.form import Written, alike, by_layer, counts


def head_dim_of(config: PretrainedConfig) -> int:
    """The size of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def blocks(config: PretrainedConfig, task: str, whole: tuple[str, ...] = ()) -> Anatomy:
    """The blocks of a causal language model. A head block is a key/value group with all its query heads.

    Args:
        config: the configuration.
        task: the task type.
        whole: names of the modules of an attention that heads share. They stay whole.
    """
    groups = config.num_key_value_heads
    queries = config.num_attention_heads // groups
    head_dim = head_dim_of(config)
    hidden = Axis(HIDDEN)
    sites: list[Sublayer] = []
    slots = [
        IndexedModule("model.embed_tokens", None, hidden),
        IndexedModule("lm_head", None, hidden),
        IndexedModule("model.norm", hidden),
    ]
    targets: dict[str, list[str]] = {name: [] for name in ("q", "k", "v", "o", "gate", "up", "down")}
    layers = [f"model.layers.{i}" for i in range(config.num_hidden_layers)]
    for number, layer in enumerate(layers):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        sites += layer_sites(layer, queries, head_dim)
        slots += layer_slots(layer, number, queries, head_dim)
        slots += (IndexedModule(f"{attention}.{name}", None) for name in whole)
        for name in targets:
            targets[name].append(f"{attention if name in 'qkvo' else mlp}.{name}_proj")
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=("model.embed_tokens", *(site.consumer for site in sites)),
        readers=tuple(p for n in ("q", "k", "v", "gate", "up") for p in targets[n]),
        norms=tuple(s.path for s in slots if s.path.endswith("norm") and s.rows == hidden),
        epsilon="variance_epsilon",
        targets={name: tuple(paths) for name, paths in targets.items()},
        layers=tuple(layers),
        sizes=Sizes((groups, config.intermediate_size) * config.num_hidden_layers, config.hidden_size),
    )


def layer_sites(layer: str, queries: int, head_dim: int) -> list[Sublayer]:
    """The two sublayers of a layer.

    Args:
        layer: path of the layer.
        queries: query heads of a group.
        head_dim: columns of a head.
    """
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    columns, params_per_hidden = queries * head_dim, head_params_per_hidden(head_dim, queries)
    return [
        Sublayer("head", f"{attention}.o_proj", columns, params_per_hidden, module=attention, emptied=EmptiedAttention),
        Sublayer("neuron", f"{mlp}.down_proj", 1, 3, module=mlp, emptied=EmptiedFeedForward),
    ]


def layer_slots(layer: str, number: int, queries: int, head_dim: int) -> list[IndexedModule]:
    """The modules of layer `number` that blocks index. Other arguments as of `layer_sites`."""
    attention, mlp, hidden = f"{layer}.self_attn", f"{layer}.mlp", Axis(HIDDEN)
    query, group, neuron = Axis(2 * number, queries * head_dim), Axis(2 * number, head_dim), Axis(2 * number + 1)
    return [
        IndexedModule(f"{layer}.input_layernorm", hidden),
        IndexedModule(f"{attention}.q_proj", query, hidden),
        IndexedModule(f"{attention}.k_proj", group, hidden),
        IndexedModule(f"{attention}.v_proj", group, hidden),
        IndexedModule(f"{attention}.o_proj", hidden, query),
        IndexedModule(f"{layer}.post_attention_layernorm", hidden),
        IndexedModule(f"{mlp}.gate_proj", neuron, hidden),
        IndexedModule(f"{mlp}.up_proj", neuron, hidden),
        IndexedModule(f"{mlp}.down_proj", hidden, neuron),
    ]


def resize_config(config: PretrainedConfig, anatomy: Anatomy) -> None:
    """Write the sizes of `anatomy` into a configuration, the largest where layers differ. `head_dim` is explicit."""
    heads, neurons = counts(anatomy, "head"), counts(anatomy, "neuron")
    queries = config.num_attention_heads // config.num_key_value_heads
    config.head_dim = head_dim_of(config)
    config.hidden_size, config.intermediate_size = anatomy.sizes.hidden, max(1, *neurons)
    config.num_key_value_heads = max(1, *heads)
    config.num_attention_heads = config.num_key_value_heads * queries


def equal_layers(anatomy: Anatomy) -> bool:
    """Whether all layers have the same sizes."""
    return alike(counts(anatomy, "head")) and alike(counts(anatomy, "neuron"))


def adaptive_form(
    config: PretrainedConfig, anatomy: Anatomy, modeling: ModuleType, adaptive: type[PretrainedConfig]
) -> Written:
    """The form with sizes by layer.

    Args:
        config: the configuration, with the sizes of `resize_config`.
        anatomy: the blocks after the cut.
        modeling: the modelling file.
        adaptive: its configuration class.
    """
    layers = {"layer_key_value_heads": counts(anatomy, "head"), "layer_intermediate_sizes": counts(anatomy, "neuron")}
    return Written(by_layer(config, adaptive, **layers), (modeling, apt_layer_sizes, apt_emptied_sublayers))


def export(
    model: nn.Module,
    config: PretrainedConfig,
    anatomy: Anatomy,
    modeling: ModuleType,
    adaptive: type[PretrainedConfig],
    stock: bool = True,
) -> Written:
    """Write equal layers in the stock configuration, which accepts all sizes. Others get sizes by layer.

    modeling, adaptive: as in `adaptive_form`. stock: as in `Architecture.export`.
    """
    resize_config(config, anatomy)
    return Written(config) if stock and equal_layers(anatomy) else adaptive_form(config, anatomy, modeling, adaptive)


def architecture(model_type: str, name: str, modeling: ModuleType, **differences: Any) -> Architecture:
    """The spec of a family with the modules of LLaMA, whose stock configuration accepts all sizes.

    Args:
        model_type: the name in config.json.
        name: how the names of its classes begin.
        modeling: the modelling file, with the configuration class `Apt<name>Config`.
        differences: fields of `Architecture` that differ.
    """
    fields: dict[str, Any] = {
        "tasks": {INSTRUCTIONS: LANGUAGE_MODEL},
        "stock_classes": {LANGUAGE_MODEL: f"{name}ForCausalLM"},
        "blocks": blocks,
        "export": partial(export, modeling=modeling, adaptive=getattr(modeling, f"Apt{name}Config")),
        "modeling": modeling,
    }
    return Architecture(model_type=model_type, **fields | differences)
