"""Tiny random mixtures of experts: two layers, hidden 32, 4 query heads in 2 groups, top-2 of 5 experts, 24 neurons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import Anatomy, block_slices
from tests.support import tiny

# model type: class, configuration, the field with the number of neurons of an expert
FAMILIES = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, "intermediate_size"),
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, "moe_intermediate_size"),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig, "intermediate_size"),
}
EXPERTS, NEURONS = 5, 24


def model(family: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """An fp32 model whose norms and weights are far from their initial values, so that mistakes show."""
    torch.manual_seed(seed)
    model_class, config_class, neurons = FAMILIES[family]
    values: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        neurons: NEURONS,
        "vocab_size": len(tiny.SPECIAL) + len(tiny.WORDS) + 200,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    model = model_class(config_class(**(values | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                # large weights, so that routers choose clearly
                parameter.normal_(0, 0.5 if ".gate." in name else 0.15)
    return model


def dressed(family: str, **changes: object) -> tuple[PreTrainedModel, Anatomy]:
    """A prepared model with adapters that do something."""
    adapted = model(family, **changes)
    anatomy = anatomy_of(adapted.config)
    architecture_of(adapted.config).prepare(adapted, anatomy)
    adapter.attach(adapted, anatomy, ("q", "k", "v", "o"), rank=3, seed=1)
    for _, module in adapter.adapters(adapted):
        module.lora_B.data.normal_(0, 0.1)
    return adapted, anatomy


def keep_of(anatomy: Anatomy, structure: str, seed: int = 1) -> np.ndarray:
    """Blocks to keep: one head, three experts, some neurons and hidden dimensions, or numbers by layer."""
    draw = np.random.default_rng(seed)
    keep = np.zeros(anatomy.sizes.total(), dtype=bool)
    numbers = {"head": 1, "expert": 3, "neuron": 8, "hidden": 16}

    def some(count: int, kept: int) -> np.ndarray:
        return np.isin(np.arange(count), draw.permutation(count)[:kept])

    where = dict(block_slices(anatomy.sizes))
    nested = {mixture.neuron_site for mixture in anatomy.experts}
    for site, span in where.items():
        kind, shift = anatomy.kind(site), int(structure == "adaptive" and 0 <= site < 3)
        if site not in nested:
            keep[span] = some(span.stop - span.start, min(span.stop - span.start, numbers[kind] + shift))
    for mixture in anatomy.experts:
        shift = int(structure == "adaptive" and mixture.neuron_site < 3)
        experts, neurons = mixture.shape(anatomy.sizes)
        kept = keep[where[mixture.expert_site]]
        table = [some(neurons, min(neurons, numbers["neuron"] + 8 * shift)) & kept[i] for i in range(experts)]
        keep[where[mixture.neuron_site]] = np.concatenate(table)
    return keep


def answer(model: PreTrainedModel) -> torch.Tensor:
    """Logits of random tokens."""
    return model(tiny.ids()).logits


def save(folder: Path, family: str, **changes: object) -> Path:
    """A model folder as `from_pretrained` reads it, with the matrices of experts one by one."""
    model(family, **changes).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder
