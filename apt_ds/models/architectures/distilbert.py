"""DistilBERT: BERT with other names, and without token types."""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION
from apt_ds.models.architectures import bert
from apt_ds.models.architectures.post_norm import PostNormEncoder, post_norm_blocks
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import Anatomy
from apt_ds.models.export import apt_emptied_sublayers, apt_layer_sizes, modeling_apt_distilbert
from apt_ds.models.export.form import Written, by_layer, counts, square

HEADS = {CLASSIFICATION: ("pre_classifier", "classifier"), ANSWERS: ("qa_outputs",)}
EMBEDDINGS = "distilbert.embeddings"
SUBLAYERS = {"q": "q_lin", "k": "k_lin", "v": "v_lin", "o": "out_lin"}


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a DistilBERT."""
    encoder = PostNormEncoder(
        tables=(f"{EMBEDDINGS}.word_embeddings", f"{EMBEDDINGS}.position_embeddings"),
        norm=f"{EMBEDDINGS}.LayerNorm",
        layers="distilbert.transformer.layer",
        sublayers={k: f"attention.{v}" for k, v in SUBLAYERS.items()} | {"up": "ffn.lin1", "down": "ffn.lin2"},
        norms=("sa_layer_norm", "output_layer_norm"),
        depth=config.n_layers,
        heads=config.n_heads,
        head_dim=config.dim // config.n_heads,
        neurons=config.hidden_dim,
        hidden=config.dim,
    )
    return post_norm_blocks(encoder, HEADS[task])


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, stock: bool = True) -> Written:
    """Write a stock model if layers are equal and dim is heads times head_dim. Others get sizes by layer."""
    heads, neurons, size = counts(anatomy, "head"), counts(anatomy, "neuron"), config.dim // config.n_heads
    config.dim, config.n_heads, config.hidden_dim = anatomy.sizes.hidden, max(heads), max(neurons)
    if stock and square(anatomy, size):
        return Written(config)
    layers = {"layer_heads": heads, "layer_hidden_dims": neurons}
    adaptive = by_layer(config, modeling_apt_distilbert.AptDistilBertConfig, head_dim=size, **layers)
    return Written(adaptive, (modeling_apt_distilbert, apt_layer_sizes, apt_emptied_sublayers))


ARCHITECTURE = Architecture(
    model_type="distilbert",
    title="DistilBERT",
    uniform_form=bert.ARCHITECTURE.uniform_form,
    tasks=bert.ARCHITECTURE.tasks,
    stock_classes={CLASSIFICATION: "DistilBertForSequenceClassification", ANSWERS: "DistilBertForQuestionAnswering"},
    blocks=blocks,
    export=export,
    modeling=modeling_apt_distilbert,
    task_heads=HEADS,
    special_tokens=bert.ARCHITECTURE.special_tokens,
)
