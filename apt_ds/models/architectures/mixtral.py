"""Mixtral without a sliding window: the attention of LLaMA, and gated experts. Its functions serve other mixtures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import ModuleType

import numpy as np
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import INSTRUCTIONS, LANGUAGE_MODEL
from apt_ds.models import experts
from apt_ds.models.architectures import decoder
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, FusedExperts, IndexedModule, Sizes, Sublayer
from apt_ds.models.export import apt_emptied_sublayers, apt_expert_sizes, apt_layer_sizes, modeling_apt_mixtral
from apt_ds.models.export.form import ExpertNames, Written, alike, by_layer, counts, mixture_sizes, per_expert
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable


def mixture_blocks(config: PretrainedConfig, neurons: int, norms_of_heads: str = "") -> Anatomy:
    """The blocks of a model with LLaMA's attention and a mixture of gated experts in every layer.

    Args:
        config: the configuration.
        neurons: neurons of each expert.
        norms_of_heads: what the norms of queries and keys span: "each" head, or "all" heads together. "": none.

    Raises:
        UserError: the attention has a sliding window, or a token needs more experts than there are.
    """
    if not 1 <= config.num_experts_per_tok <= config.num_local_experts:
        raise UserError(
            f"architecture '{config.model_type}': num_experts_per_tok of its config.json is "
            f"{config.num_experts_per_tok}. It must be from 1 to its number of experts, {config.num_local_experts}"
        )
    if getattr(config, "sliding_window", None) is not None:
        raise UserError(
            f"architecture '{config.model_type}' with a sliding window of {config.sliding_window} tokens is not "
            "supported; where no text is longer, set sliding_window to null in the config.json of the model"
        )
    dense = decoder.blocks(config, LANGUAGE_MODEL)
    mixtures = [
        FusedExperts(f"{layer}.mlp.experts", f"{layer}.mlp.gate", 3 * i + 1, 3 * i + 2)
        for i, layer in enumerate(dense.layers)
    ]
    slots = [replace(s, rows=_moved(s.rows), columns=_moved(s.columns)) for s in dense.slots if ".mlp." not in s.path]
    rows = {slot.path: slot.rows for slot in slots}
    norms = [
        IndexedModule(f"{layer}.self_attn.{short}_norm", rows[path] if norms_of_heads == "all" else None)
        for short in ("qk" if norms_of_heads else "")
        for layer, path in zip(dense.layers, dense.targets[short], strict=True)
    ]
    count = config.num_local_experts
    return replace(
        dense,
        sites=tuple(site for i, mixture in enumerate(mixtures) for site in (dense.sites[2 * i], *_sites(mixture))),
        slots=(*slots, *norms, *(IndexedModule(m.router, Axis(m.expert_site), Axis(HIDDEN)) for m in mixtures)),
        writers=("model.embed_tokens", *dense.targets["o"], *(f"{layer}.mlp" for layer in dense.layers)),
        readers=tuple(path for path in dense.readers if ".mlp." not in path),
        targets={name: dense.targets[name] for name in "qkvo"},
        sizes=Sizes((config.num_key_value_heads, count, count * neurons) * len(mixtures), config.hidden_size),
        experts=tuple(mixtures),
        experts_per_token=config.num_experts_per_tok,
        router_loss=config.router_aux_loss_coef if config.output_router_logits else 0.0,
        weighted_norms=tuple(norm.path for norm in norms if norm.rows is not None),
    )


def _moved(axis: Axis | None) -> Axis | None:
    """An axis of LLaMA's table, which has two sites in a layer, in a table with three."""
    return axis if axis is None or axis.site == HIDDEN else replace(axis, site=axis.site // 2 * 3)


def _sites(mixture: FusedExperts) -> tuple[Sublayer, Sublayer]:
    """The sites of a mixture's experts and of their neurons."""
    return Sublayer("expert", mixture.router, 1, 0), Sublayer("neuron", f"{mixture.path}.{experts.NEURONS}", 1, 3)


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a MixtralForCausalLM."""
    return mixture_blocks(config, config.intermediate_size)


def prepare(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Compute mixtures so that hooks see the neurons of experts. Mixtral's routers always normalize."""
    experts.set_up(model, anatomy)
    for mixture in anatomy.experts:
        vars(model.get_submodule(mixture.router))["norm_topk_prob"] = True


def mixture_export(
    model: nn.Module,
    config: PretrainedConfig,
    anatomy: Anatomy,
    adaptive: type[PretrainedConfig],
    modeling: ModuleType,
    neurons: str,
    names: ExpertNames,
    writable: Writable = EVERY_SIZE,
    stock: bool = True,
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
        stock: as in `Architecture.export`.
    """
    heads, (mixtures, inner) = counts(anatomy, "head"), mixture_sizes(anatomy)
    queries = config.num_attention_heads // config.num_key_value_heads
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.hidden_size = anatomy.sizes.hidden
    config.num_key_value_heads, config.num_attention_heads = max(heads), max(heads) * queries
    config.num_local_experts = max(mixtures)
    setattr(config, neurons, max(inner))
    equal = alike(heads) and alike(mixtures) and alike(inner)
    if stock and equal and writable.accepts(*(np.array(n) for n in (heads[0], inner[0], config.hidden_size))):
        return Written(config, split=partial(per_expert, names))
    # the auxiliary loss of transformers adds up router logits of all layers
    config.output_router_logits = config.output_router_logits and alike(mixtures)
    layers = {"layer_key_value_heads": heads, "layer_experts": mixtures, "layer_intermediate_sizes": inner}
    modules = (modeling, apt_expert_sizes, apt_layer_sizes, apt_emptied_sublayers)
    return Written(by_layer(config, adaptive, **layers), modules)


ARCHITECTURE = Architecture(
    model_type="mixtral",
    title="Mixtral",
    tasks={INSTRUCTIONS: LANGUAGE_MODEL},
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
    prepare=prepare,
)
