"""BERT for sequence classification and question answering: post-norm, so that norms are the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import nn
from transformers import PretrainedConfig

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GLUE_TASKS, SQUADS
from apt_ds.models.architectures.spec import Architecture
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule, Sizes, Sublayer, attention_weight
from apt_ds.models.export import modeling_apt_bert
from apt_ds.models.export.form import Written, alike, by_layer, counts


def bert_blocks(config: PretrainedConfig, task: str, name: str, heads: Mapping[str, tuple[str, ...]]) -> Anatomy:
    """The blocks of a BERT.

    Args:
        config: the configuration.
        task: the task type.
        name: the name of the encoder in the model.
        heads: each task type to its layers after the encoder. All but the last are as wide as the stream.
    """
    head_dim = config.hidden_size // config.num_attention_heads
    hidden = Axis(HIDDEN)
    embeddings = f"{name}.embeddings"
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    slots = [
        *(IndexedModule(f"{embeddings}.{table}", None, hidden) for table in tables),
        IndexedModule(f"{embeddings}.LayerNorm", hidden),
    ]
    sites: list[Sublayer] = []
    targets: dict[str, list[str]] = {short: [] for short in ("q", "k", "v", "o", "up", "down")}
    layers = [f"{name}.encoder.layer.{i}" for i in range(config.num_hidden_layers)]
    for number, layer in enumerate(layers):
        head, neuron = Axis(2 * number, head_dim), Axis(2 * number + 1)
        inner, out = f"{layer}.attention.self", f"{layer}.attention.output"
        paths = {"q": f"{inner}.query", "k": f"{inner}.key", "v": f"{inner}.value", "o": f"{out}.dense"}
        paths |= {"up": f"{layer}.intermediate.dense", "down": f"{layer}.output.dense"}
        sites += [
            Sublayer("head", paths["o"], head_dim, attention_weight(head_dim)),
            Sublayer("neuron", paths["down"], 1, 2),
        ]
        slots += [IndexedModule(paths[short], head, hidden) for short in "qkv"]
        slots += [IndexedModule(paths["o"], hidden, head), IndexedModule(f"{out}.LayerNorm", hidden)]
        slots += [IndexedModule(paths["up"], neuron, hidden), IndexedModule(paths["down"], hidden, neuron)]
        slots.append(IndexedModule(f"{layer}.output.LayerNorm", hidden))
        for short, path in paths.items():
            targets[short].append(path)
    *aside, last = heads[task]
    norms = tuple(slot.path for slot in slots if slot.path.endswith("LayerNorm"))
    slots += [*(IndexedModule(path, hidden, hidden) for path in aside), IndexedModule(last, None, hidden)]
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=norms,
        readers=tuple(path for short in ("q", "k", "v", "up") for path in targets[short]),
        norms=norms,
        epsilon="eps",
        targets={short: tuple(paths) for short, paths in targets.items()},
        layers=tuple(layers),
        sizes=Sizes((config.num_attention_heads, config.intermediate_size) * len(layers), config.hidden_size),
        layer_norm=True,
        stream_wide=tuple(aside),
        heads=(*aside, last),
    )


def bert_export(
    model: nn.Module, config: PretrainedConfig, anatomy: Anatomy, adaptive: type[PretrainedConfig]
) -> Written:
    """Write a stock model if layers are equal and hidden_size is heads times head_dim. Others get sizes by layer.

    adaptive: the configuration class with sizes by layer.
    """
    heads, neurons, hidden = counts(anatomy, "head"), counts(anatomy, "neuron"), anatomy.sizes.hidden
    size = config.hidden_size // config.num_attention_heads
    config.hidden_size, config.num_attention_heads, config.intermediate_size = hidden, max(heads), max(neurons)
    if alike(heads) and alike(neurons) and hidden == heads[0] * size:
        return Written(config)
    layers = {"layer_heads": heads, "layer_intermediate_sizes": neurons}
    return Written(by_layer(config, adaptive, head_dim=size, embedding_size=hidden, **layers), (modeling_apt_bert,))


HEADS = {CLASSIFICATION: ("bert.pooler.dense", "classifier"), ANSWERS: ("qa_outputs",)}

ARCHITECTURE = Architecture(
    model_type="bert",
    tasks=dict.fromkeys(GLUE_TASKS, CLASSIFICATION) | dict.fromkeys(SQUADS, ANSWERS),
    stock_classes={CLASSIFICATION: "BertForSequenceClassification", ANSWERS: "BertForQuestionAnswering"},
    blocks=partial(bert_blocks, name="bert", heads=HEADS),
    export=partial(bert_export, adaptive=modeling_apt_bert.AptBertConfig),
    modeling=modeling_apt_bert,
    heads=HEADS,
    title="BERT",
    uniform_form="stock class while hidden size = heads x head size, else modelling file",
    special_tokens=("cls_token", "sep_token", "pad_token"),
)
