"""Qwen3-MoE: experts in every layer, and queries and keys normalized head by head."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import experts
from apt_ds.models.architectures import mixtral
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export import modeling_apt_qwen3_moe
from apt_ds.models.export.form import ExpertNames


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a Qwen3MoeForCausalLM.

    Raises:
        UserError: some layers have no experts, or the attention has a sliding window.
    """
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        raise UserError(
            "architecture 'qwen3_moe' with layers without experts (mlp_only_layers, decoder_sparse_step) is not "
            "supported; every layer must have experts"
        )
    return mixtral.mixture_blocks(config, config.moe_intermediate_size, norms_of_heads="each")


ARCHITECTURE = replace(
    mixtral.ARCHITECTURE,
    model_type="qwen3_moe",
    title="Qwen3-MoE",
    stock_classes={LANGUAGE_MODEL: "Qwen3MoeForCausalLM"},
    blocks=blocks,
    export=partial(
        mixtral.mixture_export,
        adaptive=modeling_apt_qwen3_moe.AptQwen3MoeConfig,
        modeling=modeling_apt_qwen3_moe,
        neurons="moe_intermediate_size",
        names=ExpertNames("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    ),
    modeling=modeling_apt_qwen3_moe,
    prepare=experts.set_up,
)
