"""How a cut model is written down: its configuration, and what becomes of weights on the way. One function each.

A stock configuration is used where it can hold the sizes that are left. Other models get a configuration with sizes by
layer, whose class is in a modelling file of this folder. `writable_sizes` says which sizes a stock configuration holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MistralConfig, PretrainedConfig

from apt_ds.models.architectures.tables import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.modeling_apt_bert import AptBertConfig, AptRobertaConfig
from apt_ds.models.export.modeling_apt_llama import AptLlamaConfig
from apt_ds.models.export.modeling_apt_t5 import AptT5Config
from apt_ds.models.writable_sizes import EVERY_SIZE, Writable

# what is asked to load a model for a task, and the stock class it then makes
AUTO = {
    LANGUAGE_MODEL: "AutoModelForCausalLM",
    CLASSIFICATION: "AutoModelForSequenceClassification",
    ANSWERS: "AutoModelForQuestionAnswering",
    GENERATION: "AutoModelForSeq2SeqLM",
}
CLASSES = {
    ("llama", LANGUAGE_MODEL): "LlamaForCausalLM",
    ("mistral", LANGUAGE_MODEL): "MistralForCausalLM",
    ("bert", CLASSIFICATION): "BertForSequenceClassification",
    ("bert", ANSWERS): "BertForQuestionAnswering",
    ("roberta", CLASSIFICATION): "RobertaForSequenceClassification",
    ("roberta", ANSWERS): "RobertaForQuestionAnswering",
    ("t5", GENERATION): "T5ForConditionalGeneration",
}
Edits = dict[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Written:
    """config: what config.json says; module: the modelling file that goes with it ('': none is needed).

    edits: what a weight becomes, by its name in the model.
    """

    config: PretrainedConfig
    module: str = ""
    edits: Edits = field(default_factory=dict)


def written(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, task: str) -> Written:
    """How the cut `model` is written down. config: that of the model before; sizes and kept heads are the model's."""
    config = copy.deepcopy(config)
    found = TABLE[config.model_type](model, config, anatomy)
    config = found.config
    # not always that of the base model: a LLaMA may be written as a Mistral
    stock = CLASSES[config.model_type.removeprefix("apt_"), task]
    config.use_cache = True
    config.architectures = [f"Apt{stock}" if found.module else stock]
    if task == CLASSIFICATION:
        config.id2label, config.label2id = dict(model.config.id2label), dict(model.config.label2id)
        config.problem_type = model.config.problem_type
    if found.module:
        names = {"AutoConfig": type(config).__name__, AUTO[task]: f"Apt{stock}"}
        config.auto_map = {key: f"{found.module}.{name}" for key, name in names.items()}
    return found


def counts(anatomy: Anatomy, kind: str) -> list[int]:
    """Blocks left at each site of a kind, in the table's order."""
    return [n for site, n in zip(anatomy.sites, anatomy.sizes.counts, strict=True) if site.kind == kind]


def alike(values: list[int]) -> bool:
    """Whether all layers have the same."""
    return len(set(values)) == 1


def by_layer(config: PretrainedConfig, config_class: type[PretrainedConfig], **layers: object) -> PretrainedConfig:
    """The same configuration with sizes by layer."""
    values = config.to_dict() | layers
    values.pop("model_type")
    values.pop("sliding_window", None)  # None in every model that is read
    return config_class(**values)


def is_llama_size(hidden: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Whether LlamaConfig accepts a hidden size with a number of query heads. Its head_dim does not matter."""
    return hidden % heads == 0


def has_biases(config: PretrainedConfig) -> bool:
    """Whether a model is a LLaMA with biases, which a Mistral cannot have."""
    return any(getattr(config, name, False) for name in ("attention_bias", "mlp_bias"))


def writable_sizes(config: PretrainedConfig) -> Writable:
    """The uniform sizes that a run may choose for a model with this configuration.

    MistralConfig holds what LlamaConfig refuses, except biases. Only a LLaMA with biases is therefore limited. BERT,
    RoBERTa and T5 write all sizes.
    """
    if not has_biases(config):
        return EVERY_SIZE
    queries = config.num_attention_heads // config.num_key_value_heads

    def accepts(heads: np.ndarray, neurons: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return is_llama_size(hidden, heads * queries) & (neurons > 0)

    return Writable(accepts, "LLaMA with attention_bias or mlp_bias needs a hidden size divisible by the query heads")


def mistral(config: PretrainedConfig) -> MistralConfig:
    """The same model as a Mistral, which computes what a LLaMA without biases does."""
    unknown = {"model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp", "sliding_window"}
    values = {key: value for key, value in config.to_dict().items() if key not in unknown}
    return MistralConfig(**values, sliding_window=None)


def llama(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy) -> Written:
    """Plain where layers are alike: a LLaMA, or a Mistral where LlamaConfig refuses the sizes. head_dim is explicit."""
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
            return Written(mistral(config))
    layers = {"layer_key_value_heads": heads, "layer_intermediate_sizes": neurons}
    return Written(by_layer(config, AptLlamaConfig, **layers), "modeling_apt_llama")


def bert(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy) -> Written:
    """Plain where layers are alike and hidden_size is still heads times the size of one: that is how stock takes it."""
    heads, neurons, hidden = counts(anatomy, "head"), counts(anatomy, "neuron"), anatomy.sizes.hidden
    size = config.hidden_size // config.num_attention_heads
    own = {"bert": AptBertConfig, "roberta": AptRobertaConfig}[config.model_type]
    config.hidden_size, config.num_attention_heads, config.intermediate_size = hidden, max(heads), max(neurons)
    if alike(heads) and alike(neurons) and hidden == heads[0] * size:
        return Written(config)
    layers = {"layer_heads": heads, "layer_intermediate_sizes": neurons}
    return Written(by_layer(config, own, head_dim=size, embedding_size=hidden, **layers), "modeling_apt_bert")


def t5(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy) -> Written:
    """Plain where layers are alike and the self-attentions of a stack have the same heads: they share a position bias.

    The output scale of the original T5 is taken from d_model: where hidden dimensions went, the last norm makes up.
    """
    kept = [model.get_submodule(site.position_bias).heads.tolist() for site in anatomy.sites if site.position_bias]
    neurons, depth = counts(anatomy, "neuron"), config.num_layers
    encoder, decoder, cross = kept[:depth], kept[depth::2], [len(heads) for heads in kept[depth + 1 :: 2]]
    edits: Edits = {}
    if config.scale_decoder_outputs and anatomy.sizes.hidden != config.d_model:
        made_up = (anatomy.sizes.hidden / config.d_model) ** 0.5
        edits["decoder.final_layer_norm.weight"] = lambda weight: weight * made_up
    config.d_model, config.d_ff = anatomy.sizes.hidden, max(neurons)
    shared = [all(heads == stack[0] for heads in stack) for stack in (encoder, decoder)]
    if all(shared) and alike([len(heads) for heads in kept]) and alike(neurons):
        config.num_heads = len(kept[0])
        tables = [slot.path for slot in anatomy.slots if slot.rows is None and slot.columns is None]
        for path, heads in zip(tables, (encoder[0], decoder[0]), strict=True):
            edits[f"{path}.weight"] = columns(heads)
        return Written(config, edits=edits)
    layers = {"encoder_layer_heads": encoder, "decoder_layer_heads": decoder, "decoder_layer_cross_heads": cross}
    sizes = {"encoder_layer_d_ff": neurons[:depth], "decoder_layer_d_ff": neurons[depth:]}
    return Written(by_layer(config, AptT5Config, **layers, **sizes), "modeling_apt_t5", edits)


def columns(kept: list[int]) -> Callable[[Tensor], Tensor]:
    """Takes these columns of a weight."""
    return lambda weight: weight[:, torch.tensor(kept)].contiguous()


TABLE: dict[str, Callable[[nn.Module, PretrainedConfig, Anatomy], Written]] = {
    "llama": llama,
    "mistral": llama,
    "bert": bert,
    "roberta": bert,
    "t5": t5,
}
