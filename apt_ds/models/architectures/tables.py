"""The tables of `blocks.py`, one function per architecture. A new architecture is one more of them.

A table depends on the configuration and on the task, since that decides what head sits on the model.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.models.blocks import HIDDEN, Anatomy, Axis, IndexedModule, Sizes, Sublayer, attention_weight

Targets = dict[str, list[str]]


def llama(config: PretrainedConfig, task: str) -> Anatomy:
    """LlamaForCausalLM: pre-norm, gated feed-forward, multi-head or grouped-query attention."""
    groups = config.num_key_value_heads
    queries = config.num_attention_heads // groups
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    hidden = Axis(HIDDEN)
    sites: list[Sublayer] = []
    slots = [
        IndexedModule("model.embed_tokens", None, hidden),
        IndexedModule("lm_head", None, hidden),
        IndexedModule("model.norm", hidden),
    ]
    targets: dict[str, list[str]] = {name: [] for name in ("q", "k", "v", "o", "gate", "up", "down")}
    layers = [f"model.layers.{i}" for i in range(config.num_hidden_layers)]
    for number, layer in enumerate(layers):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        query, group, neuron = Axis(2 * number, queries * head_dim), Axis(2 * number, head_dim), Axis(2 * number + 1)
        sites += [
            Sublayer("head", f"{attention}.o_proj", queries * head_dim, attention_weight(head_dim, queries)),
            Sublayer("neuron", f"{mlp}.down_proj", 1, 3),
        ]
        slots += [
            IndexedModule(f"{layer}.input_layernorm", hidden),
            IndexedModule(f"{attention}.q_proj", query, hidden),
            IndexedModule(f"{attention}.k_proj", group, hidden),
            IndexedModule(f"{attention}.v_proj", group, hidden),
            IndexedModule(f"{attention}.o_proj", hidden, query),
            IndexedModule(f"{layer}.post_attention_layernorm", hidden),
            IndexedModule(f"{mlp}.gate_proj", neuron, hidden),
            IndexedModule(f"{mlp}.up_proj", neuron, hidden),
            IndexedModule(f"{mlp}.down_proj", hidden, neuron),
        ]
        for name in targets:
            targets[name].append(f"{attention if name in 'qkvo' else mlp}.{name}_proj")
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=("model.embed_tokens", *(site.consumer for site in sites)),
        readers=tuple(p for n in ("q", "k", "v", "gate", "up") for p in targets[n]),
        norms=tuple(s.path for s in slots if s.path.endswith("norm")),
        epsilon="variance_epsilon",
        targets={name: tuple(paths) for name, paths in targets.items()},
        layers=tuple(layers),
        sizes=Sizes((groups, config.intermediate_size) * config.num_hidden_layers, config.hidden_size),
    )


def bert(config: PretrainedConfig, task: str, name: str = "bert") -> Anatomy:
    """Bert and Roberta for sequence classification and question answering: post-norm, so that norms are the stream."""
    head_dim = config.hidden_size // config.num_attention_heads
    hidden = Axis(HIDDEN)
    embeddings = f"{name}.embeddings"
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    slots = [
        *(IndexedModule(f"{embeddings}.{table}", None, hidden) for table in tables),
        IndexedModule(f"{embeddings}.LayerNorm", hidden),
    ]
    sites: list[Sublayer] = []
    targets: Targets = {short: [] for short in ("q", "k", "v", "o", "up", "down")}
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
    aside, last = HEADS[name, task]
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
        stream_wide=aside,
        heads=(*aside, last),
    )


def roberta(config: PretrainedConfig, task: str) -> Anatomy:
    """RoBERTa: BERT under another name, with another head."""
    return bert(config, task, "roberta")


def mistral(config: PretrainedConfig, task: str) -> Anatomy:
    """MistralForCausalLM without a sliding window: the modules of LLaMA. The export writes some LLaMAs as Mistrals.

    Raises:
        UserError: the model has a sliding window.
    """
    if config.sliding_window is not None:
        raise UserError(
            f"architecture 'mistral' with a sliding window of {config.sliding_window} tokens is not supported; "
            "where no text is longer, set sliding_window to null in the config.json of the model"
        )
    return llama(config, task)


# what reads the stream at its end: layers as wide as it, then the one that makes the answer
HEADS: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("bert", CLASSIFICATION): (("bert.pooler.dense",), "classifier"),
    ("bert", ANSWERS): ((), "qa_outputs"),
    ("roberta", CLASSIFICATION): (("classifier.dense",), "classifier.out_proj"),
    ("roberta", ANSWERS): ((), "qa_outputs"),
}


def t5(config: PretrainedConfig, task: str) -> Anatomy:
    """T5ForConditionalGeneration: pre-norm, gated or plain feed-forward; encoder and decoder share hidden dimensions.

    A stack computes one position bias for all of its layers, so its table stays whole and each attention picks its
    own heads (see `t5_position_bias.py`).
    """
    hidden = Axis(HIDDEN)
    ups = {"up": "wi_0", "gate": "wi_1"} if config.is_gated_act else {"up": "wi"}
    slots = [
        IndexedModule(path, None, hidden)
        for path in ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    ]
    sites: list[Sublayer] = []
    counts: list[int] = []
    layers: list[str] = []
    targets: Targets = {short: [] for short in ("q", "k", "v", "o", *ups, "down")}
    for stack, depth in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        attentions = ("SelfAttention",) if stack == "encoder" else ("SelfAttention", "EncDecAttention")
        slots.append(IndexedModule(f"{stack}.final_layer_norm", hidden))
        slots.append(IndexedModule(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias", None))
        for layer in (f"{stack}.block.{i}" for i in range(depth)):
            layers.append(layer)
            for number, name in enumerate(attentions):
                attention, head = f"{layer}.layer.{number}.{name}", Axis(len(sites), config.d_kv)
                sites.append(Sublayer("head", f"{attention}.o", config.d_kv, attention_weight(config.d_kv), attention))
                counts.append(config.num_heads)
                slots.append(IndexedModule(f"{layer}.layer.{number}.layer_norm", hidden))
                slots += [IndexedModule(f"{attention}.{short}", head, hidden) for short in "qkv"]
                slots.append(IndexedModule(f"{attention}.o", hidden, head))
                for short in "qkvo":
                    targets[short].append(f"{attention}.{short}")
            feed, neuron = f"{layer}.layer.{len(attentions)}.DenseReluDense", Axis(len(sites))
            sites.append(Sublayer("neuron", f"{feed}.wo", 1, 1 + len(ups)))
            counts.append(config.d_ff)
            slots.append(IndexedModule(f"{layer}.layer.{len(attentions)}.layer_norm", hidden))
            slots += [IndexedModule(f"{feed}.{name}", neuron, hidden) for name in ups.values()]
            slots.append(IndexedModule(f"{feed}.wo", hidden, neuron))
            for short, name in {**ups, "down": "wo"}.items():
                targets[short].append(f"{feed}.{name}")
    return Anatomy(
        sites=tuple(sites),
        slots=tuple(slots),
        writers=("encoder.embed_tokens", "decoder.embed_tokens", *(site.consumer for site in sites)),
        readers=tuple(path for short in ("q", "k", "v", *ups) for path in targets[short]),
        norms=tuple(slot.path for slot in slots if slot.path.endswith("layer_norm")),
        epsilon="variance_epsilon",
        targets={short: tuple(paths) for short, paths in targets.items()},
        layers=tuple(layers),
        sizes=Sizes(tuple(counts), config.d_model),
        second="decoder.",
    )


Table = Callable[[PretrainedConfig, str], Anatomy]
ARCHITECTURES: dict[str, dict[str, Table]] = {
    "llama": {LANGUAGE_MODEL: llama},
    "mistral": {LANGUAGE_MODEL: mistral},
    "bert": {CLASSIFICATION: bert, ANSWERS: bert},
    "roberta": {CLASSIFICATION: roberta, ANSWERS: roberta},
    "t5": {GENERATION: t5},
}


def anatomy_of(config: PretrainedConfig, task: str = LANGUAGE_MODEL) -> Anatomy:
    """The table of a model, from its configuration alone.

    Raises:
        UserError: the architecture has no table for the task; the message lists those that do.
    """
    known = sorted(name for name, tables in ARCHITECTURES.items() if task in tables)
    if config.model_type not in known:
        raise UserError(
            f"architecture '{config.model_type}' is not supported as a {task}; supported: {', '.join(known)}"
        )
    return ARCHITECTURES[config.model_type][task](config, task)
