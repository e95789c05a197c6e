"""LLaMA: pre-norm, gated feed-forward, multi-head or grouped-query attention."""

from __future__ import annotations

import numpy as np
from torch import nn
from transformers import MistralConfig, PretrainedConfig

from apt_ds.config.tasks import INSTRUCTIONS, LANGUAGE_MODEL
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule, Sizes, Sublayer, attention_weight
from apt_ds.models.export import modeling_apt_llama
from apt_ds.models.export.emptied_sublayers import EmptiedAttention, EmptiedFeedForward
from apt_ds.models.export.form import Written, alike, by_layer, counts
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a LlamaForCausalLM. Under grouped-query attention a head block is a group with all its queries."""
    groups = config.num_key_value_heads
    queries = config.num_attention_heads // groups
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
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
        query, group, neuron = Axis(2 * number, queries * head_dim), Axis(2 * number, head_dim), Axis(2 * number + 1)
        sites += [
            Sublayer(
                "head",
                f"{attention}.o_proj",
                queries * head_dim,
                attention_weight(head_dim, queries),
                module=attention,
                emptied=EmptiedAttention,
            ),
            Sublayer("neuron", f"{mlp}.down_proj", 1, 3, module=mlp, emptied=EmptiedFeedForward),
        ]
        slots += [
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
        for name in targets:
            targets[name].append(f"{attention if name in 'qkvo' else mlp}.{name}_proj")
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=("model.embed_tokens", *(site.consumer for site in sites)),
        readers=tuple(p for n in ("q", "k", "v", "gate", "up") for p in targets[n]),
        norms=tuple(s.path for s in slots if s.path.endswith("norm")),
        epsilon="variance_epsilon",
        targets={name: tuple(paths) for name, paths in targets.items()},
        layers=tuple(layers),
        sizes=Sizes((groups, config.intermediate_size) * config.num_hidden_layers, config.hidden_size),
    )


def is_llama_size(hidden: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Whether LlamaConfig accepts a hidden size with a number of query heads. Its head_dim does not matter."""
    return hidden % heads == 0


def has_biases(config: PretrainedConfig) -> bool:
    """Whether a model is a LLaMA with biases, which a Mistral cannot have."""
    return any(getattr(config, name, False) for name in ("attention_bias", "mlp_bias"))


def writable_sizes(config: PretrainedConfig) -> Writable:
    """The uniform sizes that a run may choose for a model with this configuration.

    MistralConfig accepts the sizes that LlamaConfig refuses, but has no biases. Only a LLaMA with biases is limited.
    """
    if not has_biases(config):
        return EVERY_SIZE
    queries = config.num_attention_heads // config.num_key_value_heads

    def accepts(heads: np.ndarray, neurons: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return is_llama_size(hidden, heads * queries) & (neurons > 0)

    return Writable(accepts, "LLaMA with attention_bias or mlp_bias needs a hidden size divisible by the query heads")


def as_mistral(config: PretrainedConfig) -> MistralConfig:
    """The same model as a Mistral. Both compute the same, without biases and without a sliding window."""
    unknown = {"model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp", "sliding_window"}
    values = {key: value for key, value in config.to_dict().items() if key not in unknown}
    return MistralConfig(**values, sliding_window=None)


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy) -> Written:
    """Write equal layers as a LLaMA, or as a Mistral where LlamaConfig refuses the sizes. Others get sizes by layer.

    `head_dim` is always explicit.
    """
    heads, neurons = counts(anatomy, "head"), counts(anatomy, "neuron")
    queries = config.num_attention_heads // config.num_key_value_heads
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.hidden_size = anatomy.sizes.hidden
    config.num_key_value_heads, config.num_attention_heads = max(heads), max(heads) * queries
    config.intermediate_size = max(neurons)
    if alike(heads) and alike(neurons):
        if is_llama_size(config.hidden_size, config.num_attention_heads):
            return Written(config)
        if not has_biases(config):
            return Written(as_mistral(config))
    layers = {"layer_key_value_heads": heads, "layer_intermediate_sizes": neurons}
    return Written(by_layer(config, modeling_apt_llama.AptLlamaConfig, **layers), modeling_apt_llama)


ARCHITECTURE = Architecture(
    model_type="llama",
    tasks={INSTRUCTIONS: LANGUAGE_MODEL},
    stock_classes={LANGUAGE_MODEL: "LlamaForCausalLM"},
    blocks=blocks,
    export=export,
    modeling=modeling_apt_llama,
    writable=writable_sizes,
)
