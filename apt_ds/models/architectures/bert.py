"""BERT for sequence classification and question answering: post-norm, so that norms are the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GLUE_TASKS, SQUADS
from apt_ds.models.architectures.post_norm import PostNormEncoder, post_norm_blocks
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export import apt_emptied_sublayers, apt_layer_sizes, modeling_apt_bert
from apt_ds.models.export.apt_emptied_sublayers import EmptiedHeads, EmptiedNeurons
from apt_ds.models.export.form import Written, by_layer, counts, square

SUBLAYERS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
EMPTIED = {"head": ("attention.self", EmptiedHeads), "neuron": ("intermediate", EmptiedNeurons)}


def bert_blocks(config: PretrainedConfig, task: str, name: str, task_heads: Mapping[str, tuple[str, ...]]) -> Anatomy:
    """The blocks of a BERT.

    Args:
        config: the configuration.
        task: the task type.
        name: the name of the encoder in the model.
        task_heads: each task type to its layers after the encoder. All but the last are as wide as the stream.
    """
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    encoder = PostNormEncoder(
        tables=tuple(f"{name}.embeddings.{table}" for table in tables),
        norm=f"{name}.embeddings.LayerNorm",
        layers=f"{name}.encoder.layer",
        sublayers=SUBLAYERS,
        norms=NORMS,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        neurons=config.intermediate_size,
        hidden=config.hidden_size,
        emptied=EMPTIED,
    )
    return post_norm_blocks(encoder, task_heads[task])


def bert_export(
    model: nn.Module,
    config: PretrainedConfig,
    anatomy: Anatomy,
    adaptive: type[PretrainedConfig],
    stock: bool = True,
) -> Written:
    """Write a stock model if layers are equal and hidden_size is heads times head_dim. Others get sizes by layer.

    adaptive: the configuration class with sizes by layer. stock: as in `Architecture.export`.
    """
    heads, neurons, hidden = counts(anatomy, "head"), counts(anatomy, "neuron"), anatomy.sizes.hidden
    size = config.hidden_size // config.num_attention_heads
    config.hidden_size, config.num_attention_heads, config.intermediate_size = hidden, max(1, *heads), max(1, *neurons)
    if stock and square(anatomy, size):
        return Written(config)
    layers = {"layer_heads": heads, "layer_intermediate_sizes": neurons}
    return Written(
        by_layer(config, adaptive, head_dim=size, embedding_size=hidden, **layers),
        (modeling_apt_bert, apt_layer_sizes, apt_emptied_sublayers),
    )


HEADS = {CLASSIFICATION: ("bert.pooler.dense", "classifier"), ANSWERS: ("qa_outputs",)}

ARCHITECTURE = Architecture(
    model_type="bert",
    tasks=dict.fromkeys(GLUE_TASKS, CLASSIFICATION) | dict.fromkeys(SQUADS, ANSWERS),
    stock_classes={CLASSIFICATION: "BertForSequenceClassification", ANSWERS: "BertForQuestionAnswering"},
    blocks=partial(bert_blocks, name="bert", task_heads=HEADS),
    export=partial(bert_export, adaptive=modeling_apt_bert.AptBertConfig),
    modeling=modeling_apt_bert,
    task_heads=HEADS,
    title="BERT",
    uniform_form="stock class while hidden size = heads x head size, else modelling file",
    special_tokens=("cls_token", "sep_token", "pad_token"),
)
