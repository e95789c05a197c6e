"""DeBERTa-v2 and v3: post-norm, attention to relative positions beside content.

All layers share a table of relative positions, which is as wide as the stream but no part of it. Each attention
projects the table to its heads: by the weights of queries and keys (`share_att_key`) or by two of its own.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION
from apt_ds.models.architectures import bert
from apt_ds.models.architectures.post_norm import PostNormEncoder, post_norm_blocks
from apt_ds.models.architectures.spec import Architecture, own_attention
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule
from apt_ds.models.export import apt_emptied_sublayers, apt_layer_sizes, modeling_apt_deberta_v2
from apt_ds.models.export.form import Written, by_layer, counts, square

HEADS = {CLASSIFICATION: ("pooler.dense", "classifier"), ANSWERS: ("qa_outputs",)}
EMBEDDINGS, ENCODER = "deberta.embeddings", "deberta.encoder"
PROJECTION = f"{EMBEDDINGS}.embed_proj"
TABLE, TABLE_NORM = f"{ENCODER}.rel_embeddings", f"{ENCODER}.LayerNorm"
SUBLAYERS = bert.SUBLAYERS | {
    short: f"attention.self.{name}_proj" for short, name in zip("qkv", ("query", "key", "value"), strict=True)
}


def head_size(config: PretrainedConfig) -> int:
    """Dimensions of a head."""
    return getattr(config, "attention_head_size", config.hidden_size // config.num_attention_heads)


def has_projection(config: PretrainedConfig) -> bool:
    """Whether a linear layer follows the embeddings."""
    return getattr(config, "embedding_size", config.hidden_size) != config.hidden_size


def position_projections(config: PretrainedConfig) -> dict[str, str]:
    """The projections of relative positions that an attention has beside its own: target names to paths in a layer."""
    if not config.relative_attention or getattr(config, "share_att_key", False):
        return {}
    names = {"c2p": ("position_k", "pos_key_proj"), "p2c": ("position_q", "pos_query_proj")}
    kinds = [names[kind] for kind in ("c2p", "p2c") if kind in (config.pos_att_type or ())]
    return {short: f"attention.self.{name}" for short, name in kinds}


def check(config: PretrainedConfig) -> None:
    """Check that the model consists of supported modules.

    Raises:
        UserError: it has a convolution, or a pooler of another size than the encoder.
    """
    kernel = getattr(config, "conv_kernel_size", 0)
    if kernel > 0:
        raise UserError(
            f"architecture 'deberta-v2' with a convolution (conv_kernel_size {kernel} in config.json) is not "
            "supported; give a model without one, such as any DeBERTa-v3"
        )
    if config.pooler_hidden_size != config.hidden_size:
        raise UserError(
            f"architecture 'deberta-v2' with pooler_hidden_size {config.pooler_hidden_size} and hidden_size "
            f"{config.hidden_size} is not supported; both must be equal in config.json"
        )


def embedding_tables(config: PretrainedConfig) -> tuple[str, ...]:
    """Paths of the tables whose sum is embedded text."""
    present = {
        "word_embeddings": True,
        "position_embeddings": config.position_biased_input,
        "token_type_embeddings": config.type_vocab_size > 0,
    }
    return tuple(f"{EMBEDDINGS}.{name}" for name, there in present.items() if there)


def blocks(config: PretrainedConfig, task: str) -> Anatomy:
    """The blocks of a DeBERTa.

    Raises:
        UserError: the model has modules that are not supported.
    """
    check(config)
    tables, projects, hidden = embedding_tables(config), has_projection(config), Axis(HIDDEN)
    encoder = PostNormEncoder(
        tables=() if projects else tables,
        norm=f"{EMBEDDINGS}.LayerNorm",
        layers=f"{ENCODER}.layer",
        sublayers=SUBLAYERS,
        norms=bert.NORMS,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_dim=head_size(config),
        neurons=config.intermediate_size,
        hidden=config.hidden_size,
        projections=position_projections(config),
    )
    anatomy = post_norm_blocks(encoder, HEADS[task])
    slots, norms = list(anatomy.slots), anatomy.norms
    # the pooler's activation, too, may give removed dimensions a value
    wide = ["pooler"] if task == CLASSIFICATION else []
    if projects:
        slots += [*(IndexedModule(path, None) for path in tables), IndexedModule(PROJECTION, hidden)]
    if config.relative_attention:
        slots.append(IndexedModule(TABLE, None, hidden))
        if "layer_norm" in getattr(config, "norm_rel_ebd", "none").lower():
            slots.append(IndexedModule(TABLE_NORM, hidden))
            norms, wide = (*norms, TABLE_NORM), [*wide, TABLE_NORM]
        else:
            wide += [f"{layer}.attention.self.pos_dropout" for layer in anatomy.layers]
    return replace(anatomy, slots=tuple(slots), norms=norms, stream_wide=tuple(wide), layer_outputs=2)


class Attention(DisentangledSelfAttention):
    """Stock attention whose number of heads follows a cut."""

    @property
    def num_attention_heads(self) -> int:
        """The heads that the projections have."""
        return self.query_proj.out_features // self.attention_head_size


def prepare(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Let every attention of a loaded model count its heads."""
    for layer in anatomy.layers:
        model.get_submodule(f"{layer}.attention.self").__class__ = Attention


def export(model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, stock: bool = True) -> Written:
    """Write a stock model if layers are equal and hidden_size is heads times head_dim. Others get sizes by layer.

    A cut to the width of projected embeddings needs sizes by layer too: a stock model has no projection then.
    """
    heads, neurons, hidden = counts(anatomy, "head"), counts(anatomy, "neuron"), anatomy.sizes.hidden
    size, projects = head_size(config), has_projection(config)
    if not projects:
        config.embedding_size = hidden
    config.pooler_hidden_size, config.attention_head_size = hidden, size
    config.hidden_size, config.num_attention_heads, config.intermediate_size = hidden, max(heads), max(neurons)
    if stock and square(anatomy, size) and projects == has_projection(config):
        return Written(config)
    layers = {"layer_heads": heads, "layer_intermediate_sizes": neurons, "project_embeddings": projects}
    adaptive = by_layer(config, modeling_apt_deberta_v2.AptDebertaV2Config, **layers)
    return Written(adaptive, (modeling_apt_deberta_v2, apt_layer_sizes, apt_emptied_sublayers))


ARCHITECTURE = Architecture(
    model_type="deberta-v2",
    title="DeBERTa-v3, DeBERTa-v2 without a convolution",
    uniform_form=bert.ARCHITECTURE.uniform_form,
    tasks=bert.ARCHITECTURE.tasks,
    stock_classes={CLASSIFICATION: "DebertaV2ForSequenceClassification", ANSWERS: "DebertaV2ForQuestionAnswering"},
    blocks=blocks,
    export=export,
    modeling=modeling_apt_deberta_v2,
    task_heads=HEADS,
    special_tokens=bert.ARCHITECTURE.special_tokens,
    prepare=prepare,
    attention=own_attention,
)
