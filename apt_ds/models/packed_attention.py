"""Attention of packed rows, where every example sees only itself.

A dense mask makes this block-diagonal, and PyTorch then cannot use its flash kernels. A variable-length kernel takes
the starts of the examples instead. It is registered with transformers as `VARLEN`. Without starts, in evaluation for
example, it is the `sdpa` of transformers.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from apt_ds.config.option_groups import FLASH, VARLEN
from apt_ds.data.batching import Batch


def packed_inputs(implementation: str, batch: Batch) -> dict[str, Any]:
    """Arguments of a model's forward that say where packed examples start.

    Args:
        implementation: the model's attention kernel.
        batch: packed rows.

    Returns:
        Positions. For a variable-length kernel the starts too, under the names of transformers.
    """
    inputs: dict[str, Any] = {"position_ids": batch.position_ids}
    if batch.starts is None or implementation not in (VARLEN, FLASH):
        return inputs
    for side in ("q", "k"):
        inputs |= {f"cu_seq_lens_{side}": batch.starts, f"max_length_{side}": batch.longest}
    if implementation == VARLEN:
        # transformers makes no mask where it gets one of four dimensions, and the kernel reads none
        inputs["attention_mask"] = batch.input_ids.new_zeros((1, 1, 1, 1), dtype=torch.bool)
    return inputs


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each example, for transformers.

    Args:
        module: the attention module.
        query: [B, heads, L, head size].
        key: [B, groups, L, head size].
        value: [B, groups, L, head size].
        attention_mask: not read where `cu_seq_lens_q` is given.
        dropout: 0 where `cu_seq_lens_q` is given.
        scaling: factor of the scores.
        cu_seq_lens_q: int32 [examples + 1], see `Batch.starts`. None: no example starts inside a row.
        max_length_q: tokens of the longest example.
        sliding_window: tokens that a token sees, itself included. None: all before it.
        options: further arguments of transformers.

    Returns:
        [B, L, heads, head size], and None.
    """
    if cu_seq_lens_q is None:
        assert attention_mask is None or attention_mask.shape[-1] == key.shape[-2], "the starts of examples are lost"
        options |= {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    assert not dropout and options.get("softcap") is None
    batch, heads, length, size = query.shape
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    kernel = one_by_one if query.device.type == "cpu" else flash
    output = kernel(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window)
    return output.view(batch, length, heads, size), None


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """PyTorch's variable-length kernel. Arguments and result are those of `one_by_one`."""
    kernel = varlen_kernel()
    options: dict[str, Any] = {"window_size": (-1 if window is None else window - 1, 0), "scale": scaling}
    if "enable_gqa" in parameters_of(kernel):
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    return kernel(query, key, value, starts, starts, longest, longest, **options)


@cache
def varlen_kernel() -> Callable[..., Tensor]:
    """PyTorch's variable-length kernel. Its import takes as long as that of PyTorch, so only a GPU makes it."""
    return importlib.import_module("torch.nn.attention.varlen").varlen_attn


@cache
def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters."""
    return tuple(inspect.signature(function).parameters)


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention of one example after the other.

    Args:
        query: [tokens, heads, head size].
        key: [tokens, groups, head size].
        value: [tokens, groups, head size].
        starts: [examples + 1], see `Batch.starts`.
        longest: tokens of the longest example. Not read here.
        scaling: factor of the scores.
        window: tokens that a token sees, itself included. None: all before it.

    Returns:
        [tokens, heads, head size].
    """
    outputs = []
    for start, end in pairwise(starts.tolist()):
        q, k, v = (tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value))
        mask = None
        if window is not None:
            ones = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device)
            mask = ones.tril().triu(1 - window)
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


AttentionInterface.register(VARLEN, attend)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
