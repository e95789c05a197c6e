"""ELECTRA: BERT under another name. Small models project narrow embeddings to the hidden size."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION
from apt_ds.models.architectures import bert
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule
from apt_ds.models.export import apt_emptied_sublayers, apt_layer_sizes, modeling_apt_bert
from apt_ds.models.export.form import Written, by_layer, counts, square

HEADS = {CLASSIFICATION: ("classifier.dense", "classifier.out_proj"), ANSWERS: ("qa_outputs",)}
EMBEDDINGS, PROJECTION = "electra.embeddings.", "electra.embeddings_project"


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a BERT. Where a linear layer follows the embeddings, the residual stream begins after it."""
    anatomy = bert.bert_blocks(config, task, "electra", HEADS)
    if config.embedding_size == config.hidden_size:
        return anatomy
    slots = [IndexedModule(slot.path, None) if slot.path.startswith(EMBEDDINGS) else slot for slot in anatomy.slots]
    norms = tuple(path for path in anatomy.norms if not path.startswith(EMBEDDINGS))
    slots.append(IndexedModule(PROJECTION, Axis(HIDDEN)))
    return replace(anatomy, slots=tuple(slots), writers=(PROJECTION, *norms), norms=norms)


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, stock: bool = True) -> Written:
    """Write a stock model as BERT does. A cut to the width of projected embeddings needs sizes by layer."""
    heads, neurons, hidden = counts(anatomy, "head"), counts(anatomy, "neuron"), anatomy.sizes.hidden
    projects = config.embedding_size != config.hidden_size
    size = config.hidden_size // config.num_attention_heads
    config.embedding_size = config.embedding_size if projects else hidden
    config.hidden_size, config.num_attention_heads, config.intermediate_size = hidden, max(1, *heads), max(1, *neurons)
    if stock and square(anatomy, size) and projects == (config.embedding_size != hidden):
        return Written(config)
    layers = {"layer_heads": heads, "layer_intermediate_sizes": neurons, "project_embeddings": projects}
    adaptive = by_layer(config, modeling_apt_bert.AptElectraConfig, head_dim=size, **layers)
    return Written(adaptive, (modeling_apt_bert, apt_layer_sizes, apt_emptied_sublayers))


ARCHITECTURE = replace(
    bert.ARCHITECTURE,
    model_type="electra",
    title="ELECTRA",
    stock_classes={CLASSIFICATION: "ElectraForSequenceClassification", ANSWERS: "ElectraForQuestionAnswering"},
    blocks=blocks,
    export=export,
    task_heads=HEADS,
)
