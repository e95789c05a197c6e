"""OLMoE: experts in every layer, and queries and keys normalized over all heads together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import experts
from apt_ds.models.architectures import mixtral
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export import modeling_apt_olmoe
from apt_ds.models.export.form import ExpertNames, Written
from apt_ds.models.writable_sizes import Writable

NAMES = ExpertNames("mlp", gate="gate_proj", up="up_proj", down="down_proj")


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of an OlmoeForCausalLM. The norms of queries and keys lose the entries of a head with the head."""
    return mixtral.mixture_blocks(config, config.intermediate_size, norms_of_heads="all")


def writable_sizes(config: PretrainedConfig) -> Writable:
    """The uniform sizes that a run may choose: the norm of queries has the size hidden_size in transformers."""
    queries = config.num_attention_heads // config.num_key_value_heads
    width = (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) * queries

    def accepts(heads: np.ndarray, neurons: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return (hidden == heads * width) & (neurons > 0)

    return Writable(accepts, "OLMoE needs a hidden size equal to the query heads times head_dim")


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, stock: bool = True) -> Written:
    """Write equal layers as a stock model, if the heads are as wide as the stream. Others get sizes by layer."""
    return mixtral.mixture_export(
        model,
        config,
        anatomy,
        modeling_apt_olmoe.AptOlmoeConfig,
        modeling_apt_olmoe,
        "intermediate_size",
        NAMES,
        writable_sizes(config),
        stock,
    )


ARCHITECTURE = replace(
    mixtral.ARCHITECTURE,
    model_type="olmoe",
    title="OLMoE",
    stock_classes={LANGUAGE_MODEL: "OlmoeForCausalLM"},
    blocks=blocks,
    export=export,
    modeling=modeling_apt_olmoe,
    writable=writable_sizes,
    prepare=experts.set_up,
)
