"""Mixtral without a sliding window: the attention of LLaMA, and gated experts. Its functions serve other mixtures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import ModuleType

import numpy as np
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import experts
from apt_ds.models.architectures import llama
from apt_ds.models.architectures.spec import every_size
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, FusedExperts, IndexedModule, Sizes, Sublayer, attention_weight
from apt_ds.models.export import modeling_apt_mixtral
from apt_ds.models.export.form import ExpertNames, Written, alike, by_layer, counts, mixture_sizes, per_expert
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable


def mixture_blocks(config: PretrainedConfig, neurons: int, norms_of_heads: str = "") -> Anatomy:
    """The blocks of a model with LLaMA's attention and a mixture of gated experts in every layer.

    Args:
        config: the configuration.
        neurons: neurons of each expert.
        norms_of_heads: what the norms of queries and keys span: "each" head, or "all" heads together. "": none.

    Raises:
        UserError: the attention has a sliding window.
    """
    if getattr(config, "sliding_window", None) is not None:
        raise UserError(
            f"architecture '{config.model_type}' with a sliding window of {config.sliding_window} tokens is not "
            "supported; where no text is longer, set sliding_window to null in the config.json of the model"
        )
    groups = config.num_key_value_heads
    queries = config.num_attention_heads // groups
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    hidden = Axis(HIDDEN)
    sites: list[Sublayer] = []
    mixtures: list[FusedExperts] = []
    slots = [
        IndexedModule("model.embed_tokens", None, hidden),
        IndexedModule("lm_head", None, hidden),
        IndexedModule("model.norm", hidden),
    ]
    targets: dict[str, list[str]] = {name: [] for name in "qkvo"}
    layers = [f"model.layers.{i}" for i in range(config.num_hidden_layers)]
    for number, layer in enumerate(layers):
        attention, mixture = f"{layer}.self_attn", f"{layer}.mlp.experts"
        query, group, expert = Axis(3 * number, queries * head_dim), Axis(3 * number, head_dim), Axis(3 * number + 1)
        mixtures.append(FusedExperts(mixture, f"{layer}.mlp.gate", 3 * number + 1, 3 * number + 2))
        sites += [
            Sublayer("head", f"{attention}.o_proj", queries * head_dim, attention_weight(head_dim, queries)),
            Sublayer("expert", f"{layer}.mlp.gate", 1, 0),
            Sublayer("neuron", f"{mixture}.{experts.NEURONS}", 1, 3),
        ]
        slots += [
            IndexedModule(f"{layer}.input_layernorm", hidden),
            IndexedModule(f"{attention}.q_proj", query, hidden),
            IndexedModule(f"{attention}.k_proj", group, hidden),
            IndexedModule(f"{attention}.v_proj", group, hidden),
            IndexedModule(f"{attention}.o_proj", hidden, query),
            IndexedModule(f"{layer}.post_attention_layernorm", hidden),
            IndexedModule(f"{layer}.mlp.gate", expert, hidden),
        ]
        if norms_of_heads:
            rows = {"q": query, "k": group} if norms_of_heads == "all" else {"q": None, "k": None}
            slots += [IndexedModule(f"{attention}.{name}_norm", axis) for name, axis in rows.items()]
        for name in targets:
            targets[name].append(f"{attention}.{name}_proj")
    over_all = [slot.path for slot in slots if norms_of_heads == "all" and slot.path.endswith(("q_norm", "k_norm"))]
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=("model.embed_tokens", *targets["o"], *(f"{layer}.mlp" for layer in layers)),
        readers=tuple(path for name in "qkv" for path in targets[name]),
        norms=tuple(s.path for s in slots if s.path.endswith(("layernorm", "model.norm"))),
        epsilon="variance_epsilon",
        targets={name: tuple(paths) for name, paths in targets.items()},
        layers=tuple(layers),
        sizes=Sizes(
            (groups, config.num_local_experts, config.num_local_experts * neurons) * config.num_hidden_layers,
            config.hidden_size,
        ),
        experts=tuple(mixtures),
        experts_per_token=config.num_experts_per_tok,
        router_loss=config.router_aux_loss_coef if config.output_router_logits else 0.0,
        weighted_norms=tuple(over_all),
    )


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a MixtralForCausalLM. Under grouped-query attention a head block is a group with all its queries."""
    return mixture_blocks(config, config.intermediate_size)


def prepare(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Compute mixtures so that hooks see the neurons of experts. Mixtral's routers always normalize."""
    experts.set_up(model, anatomy)
    for mixture in anatomy.experts:
        model.get_submodule(mixture.router).norm_topk_prob = True


def mixture_export(
    model: nn.Module,
    config: PretrainedConfig,
    anatomy: Anatomy,
    adaptive: type[PretrainedConfig],
    modeling: ModuleType,
    neurons: str,
    names: ExpertNames,
    writable: Writable = EVERY_SIZE,
) -> Written:
    """Write equal layers as a stock model. Others get sizes by layer. `head_dim` is always explicit.

    Args:
        model: the cut model.
        config: the configuration before the cut. It is changed.
        anatomy: the blocks after the cut.
        adaptive: the configuration class with sizes by layer.
        modeling: the modelling file of that class.
        neurons: the field with the number of neurons of an expert.
        names: the names of weights in stock checkpoints.
        writable: the sizes that a stock configuration has.
    """
    heads, (mixtures, inner) = counts(anatomy, "head"), mixture_sizes(anatomy)
    queries = config.num_attention_heads // config.num_key_value_heads
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.hidden_size = anatomy.sizes.hidden
    config.num_key_value_heads, config.num_attention_heads = max(heads), max(heads) * queries
    config.num_local_experts = max(mixtures)
    setattr(config, neurons, max(inner))
    equal = alike(heads) and alike(mixtures) and alike(inner)
    if equal and writable.accepts(*(np.array(n) for n in (heads[0], inner[0], config.hidden_size))):
        return Written(config, split=partial(per_expert, names))
    # the auxiliary loss of transformers adds up router logits of all layers
    config.output_router_logits = config.output_router_logits and alike(mixtures)
    layers = {"layer_key_value_heads": heads, "layer_experts": mixtures, "layer_intermediate_sizes": inner}
    return Written(by_layer(config, adaptive, **layers), modeling)


ARCHITECTURE = replace(
    llama.ARCHITECTURE,
    model_type="mixtral",
    stock_classes={LANGUAGE_MODEL: "MixtralForCausalLM"},
    blocks=blocks,
    export=partial(
        mixture_export,
        adaptive=modeling_apt_mixtral.AptMixtralConfig,
        modeling=modeling_apt_mixtral,
        neurons="intermediate_size",
        names=ExpertNames("block_sparse_moe", gate="w1", up="w3", down="w2"),
    ),
    modeling=modeling_apt_mixtral,
    writable=every_size,
    prepare=prepare,
)
