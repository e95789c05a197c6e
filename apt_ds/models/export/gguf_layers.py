"""Models with sizes by layer in GGUF: sublayers without blocks, joined projections, and scaled weights.

It runs in the process of `gguf_worker.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ZERO_NEURONS = 32  # a block of q8_0


def by_layer(source: Any, base: Any, gguf: Any, job: dict[str, Any]) -> Any:
    """The converter's class for a family, written in an architecture of llama.cpp that has sizes by layer.

    DECI is LLaMA with biases. OpenELM has norms of queries and keys, joined projections and tied embeddings. A sublayer
    without blocks is written with one group, or `ZERO_NEURONS` neurons, of zeros: DECI loses the residual of a layer
    without neurons.
    """
    head_dim, groups, scales = job["head_dim"], job["groups"], job["scales"]
    joined = job["layout"] == "openelm"

    class Layered(source):
        model_arch = gguf.MODEL_ARCH.OPENELM if joined else gguf.MODEL_ARCH.DECI

        def set_gguf_parameters(self) -> None:
            self.hparams |= sizes_by_layer(job)
            base.TextModel.set_gguf_parameters(self)
            self.gguf_writer.add_rope_dimension_count(head_dim)
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

        def generate_extra_tensors(self) -> Iterator[tuple[str, Tensor]]:
            if job["rope_type"] == "llama3":
                yield from super().generate_extra_tensors()
            for layer in range(len(groups)):
                yield from zero_projections(job, layer)
            if scales and job["tied"]:
                yield "lm_head.weight", self.model_tensors["model.embed_tokens.weight"]()

        def modify_tensors(self, data: Tensor, name: str, bid: int | None) -> Iterator[tuple[str, Tensor]]:
            for part, value in split(name, data, groups[bid] if bid is not None else 0, job):
                yield from self.one_tensor(value, part, bid)

        def one_tensor(self, data: Tensor, name: str, bid: int | None) -> Iterator[tuple[str, Tensor]]:
            module = module_of(name)
            if module in scales:
                data = data * scales[module]
            if module in ("q_proj", "k_proj") and not joined:
                data = interleave(data, head_dim)
            if joined and module in ("q_proj", "k_proj", "v_proj"):
                parts = self.__dict__.setdefault("waiting", {}).setdefault(bid, {})
                parts[module] = data
                if len(parts) == 3:
                    data = torch.cat([parts[part] for part in ("q_proj", "k_proj", "v_proj")])
                    yield self.format_tensor_name(gguf.MODEL_TENSOR.ATTN_QKV, bid), data
                return
            yield from base.ModelBase.modify_tensors(self, data, name, bid)

    return Layered


def sizes_by_layer(job: dict[str, Any]) -> dict[str, Any]:
    """The sizes of all layers, by their names in a configuration. No sublayer is empty."""
    groups = [group or 1 for group in job["groups"]]
    return {
        "num_attention_heads": [job["queries_per_group"] * size for size in groups],
        "num_key_value_heads": groups,
        "intermediate_size": [size or ZERO_NEURONS for size in job["neurons"]],
        "head_dim": job["head_dim"],
    }


def zero_projections(job: dict[str, Any], layer: int) -> Iterator[tuple[str, Tensor]]:
    """The projections of the sublayers that are empty in a layer, and norms of ones."""
    head_dim, queries, hidden = job["head_dim"], job["queries_per_group"], job["hidden"]
    shapes: dict[str, tuple[int, int]] = {}
    if not job["groups"][layer]:
        shapes |= {"self_attn.q_proj": (queries * head_dim, hidden), "self_attn.k_proj": (head_dim, hidden)}
        shapes |= {"self_attn.v_proj": (head_dim, hidden), "self_attn.o_proj": (hidden, queries * head_dim)}
    if not job["neurons"][layer]:
        shapes |= {"mlp.gate_proj": (ZERO_NEURONS, hidden), "mlp.up_proj": (ZERO_NEURONS, hidden)}
        shapes |= {"mlp.down_proj": (hidden, ZERO_NEURONS)}
    for name, shape in shapes.items():
        yield f"model.layers.{layer}.{name}.weight", torch.zeros(shape)
    for name in ("q_norm", "k_norm") if job["layout"] == "openelm" and not job["groups"][layer] else ():
        yield f"model.layers.{layer}.self_attn.{name}.weight", torch.ones(head_dim)


def split(name: str, data: Tensor, groups: int, job: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The projections that a weight joins, by rows. Other weights as they are."""
    if name.endswith(".qkv_proj.weight"):
        rows = [job["queries_per_group"] * groups * job["head_dim"], *[groups * job["head_dim"]] * 2]
        parts = ["q_proj", "k_proj", "v_proj"]
    elif name.endswith(".gate_up_proj.weight"):
        rows, parts = [data.shape[0] // 2] * 2, ["gate_proj", "up_proj"]
    else:
        yield name, data
        return
    start, stem = 0, name.rpartition(".")[0].rpartition(".")[0]
    for part, count in zip(parts, rows, strict=True):
        yield f"{stem}.{part}.weight", data[start : start + count]
        start += count


def interleave(data: Tensor, head_dim: int) -> Tensor:
    """Rows in the order of llama.cpp's rotary positions: both halves of each head alternate."""
    heads = data.reshape(data.shape[0] // head_dim, 2, head_dim // 2, *data.shape[1:])
    return heads.swapaxes(1, 2).reshape(data.shape)


def module_of(name: str) -> str:
    """The last module in the name of a weight: q_proj of model.layers.0.self_attn.q_proj.weight."""
    return name.rpartition(".")[0].rpartition(".")[2]
