"""One timed forward or generation pass over random tokens, for each task type. `inference_cost.py` repeats it.

A language model reads a prompt and generates greedily at batch 1. An encoder reads one batch (the paper: 128 sequences
of 128 tokens). An encoder-decoder (T5) encodes a batch and generates greedily, with its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.runtime.clock import seconds_after

Figures = dict[str, float | int]


class TableRow(NamedTuple):
    """A row of the table of costs.

    Attributes:
        key: The figure's key in the JSON file.
        label: Its name in the table. `{batch}` becomes the batch size.
        form: Its format.
        scale: What it is multiplied by for the table.
    """

    key: str
    label: str
    form: str
    scale: float


@dataclass(frozen=True)
class TimingPlan:
    """Sizes and repetitions of a measurement.

    Attributes:
        prompt: Tokens of a prompt. 0 means the protocol's default.
        new_tokens: Tokens to generate.
        rounds: Measurements of each model.
        max_batch: Upper bound of the search for the largest batch. 0 means until memory ends.
        batch: Sequences of a batch. 0 means the protocol's default. A language model runs at batch 1, and also at
            `batch` if that is above 1. Other models run at `batch` only.
    """

    prompt: int = 0
    new_tokens: int = 32
    rounds: int = 5
    max_batch: int = 16
    batch: int = 0


@dataclass(frozen=True)
class TimingProtocol:
    """How models of a task type are measured.

    Attributes:
        run: One pass. Returns its figures.
        rows: The figures of the table.
        prompt: Default tokens of a prompt.
        batch: Default sequences of a batch.
    """

    run: Callable[[PreTrainedModel, TimingPlan], Figures]
    rows: tuple[TableRow, ...]
    prompt: int
    batch: int

    def complete(self, plan: TimingPlan) -> TimingPlan:
        """The plan with the defaults of this protocol where it has 0."""
        return replace(plan, prompt=plan.prompt or self.prompt, batch=plan.batch or self.batch)


def prompts(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    """Random token ids, int64 [batch, length] on the device, the same for every model with this vocabulary size."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=generator)
    return ids.to(model.device)


@torch.no_grad()
def run_once(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> tuple[float, float]:
    """Read prompts and generate greedily.

    Args:
        model: A causal language model.
        ids: int64 [batch, length].
        new_tokens: Tokens to generate for each prompt.

    Returns:
        Seconds of the prompts (prefill), and seconds of the new tokens (decode).
    """
    start = seconds_after(model.device)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    prefilled = seconds_after(model.device)
    for _ in range(new_tokens):
        next_ids = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=next_ids, past_key_values=output.past_key_values, use_cache=True)
    return prefilled - start, seconds_after(model.device) - prefilled


def time_generation(model: PreTrainedModel, plan: TimingPlan) -> Figures:
    """A language model at batch 1."""
    prefill, decode = run_once(model, prompts(model, 1, plan.prompt), plan.new_tokens)
    return {"prefill_seconds": prefill, "decode_tokens_per_second": plan.new_tokens / decode}


def time_generation_at_batch(model: PreTrainedModel, plan: TimingPlan) -> Figures:
    """A language model at `plan.batch`."""
    prefill, decode = run_once(model, prompts(model, plan.batch, plan.prompt), plan.new_tokens)
    speed = plan.batch * plan.new_tokens / decode
    return {"inference_batch_prefill_seconds": prefill, "inference_batch_tokens_per_second": speed}


@torch.no_grad()
def time_encoder(model: PreTrainedModel, plan: TimingPlan) -> Figures:
    """An encoder with its head: one forward pass."""
    ids = prompts(model, plan.batch, plan.prompt)
    start = seconds_after(model.device)
    model(input_ids=ids)
    seconds = seconds_after(model.device) - start
    return {"forward_seconds": seconds, "sequences_per_second": plan.batch / seconds}


@torch.no_grad()
def time_encoder_decoder(model: PreTrainedModel, plan: TimingPlan) -> Figures:
    """An encoder-decoder: encodes once, then generates token by token."""
    ids = prompts(model, plan.batch, plan.prompt)
    start = seconds_after(model.device)
    encoded = model.get_encoder()(input_ids=ids)
    encoded_at = seconds_after(model.device)
    next_ids = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
    past = None
    for _ in range(plan.new_tokens):
        output = model(encoder_outputs=encoded, decoder_input_ids=next_ids, past_key_values=past, use_cache=True)
        next_ids, past = output.logits[:, -1:].argmax(-1), output.past_key_values
    encode, decode = encoded_at - start, seconds_after(model.device) - encoded_at
    speed = plan.batch * plan.new_tokens / decode
    return {"encode_seconds": encode, "decode_tokens_per_second": speed, "whole_seconds": encode + decode}


SIZES: tuple[TableRow, ...] = (
    TableRow("parameters", "parameters, all", "{:,}", 1),
    TableRow("parameters_without_embeddings", "parameters, without embeddings", "{:,}", 1),
    TableRow("flops_per_token", "GFLOPs per token (weights)", "{:,.3f}", 1e-9),
    TableRow("checkpoint_bytes", "checkpoint, MB", "{:,.1f}", 1e-6),
)
LANGUAGE = TimingProtocol(
    time_generation,
    (
        TableRow("prefill_seconds", "prefill, ms", "{:,.1f}", 1e3),
        TableRow("decode_tokens_per_second", "decode at batch 1, tokens/s", "{:,.1f}", 1),
        TableRow("static_tokens_per_second", "static cache at batch 1, tokens/s", "{:,.1f}", 1),
        TableRow("batch", "largest batch found to fit", "{:,}", 1),
        TableRow("batch_tokens_per_second", "decode at that batch, tokens/s", "{:,.1f}", 1),
        TableRow("inference_bytes", "peak memory at batch 1, MB", "{:,.1f}", 1e-6),
        TableRow("inference_batch_prefill_seconds", "prefill at batch {batch}, ms", "{:,.1f}", 1e3),
        TableRow("inference_batch_tokens_per_second", "decode at batch {batch}, tokens/s", "{:,.1f}", 1),
        TableRow("inference_batch_static_tokens_per_second", "static cache at batch {batch}, tokens/s", "{:,.1f}", 1),
        TableRow("inference_batch_bytes", "peak memory at batch {batch}, MB", "{:,.1f}", 1e-6),
        *SIZES,
    ),
    prompt=256,
    batch=1,
)
ENCODER = TimingProtocol(
    time_encoder,
    (
        TableRow("forward_seconds", "forward pass, ms", "{:,.1f}", 1e3),
        TableRow("sequences_per_second", "sequences/s", "{:,.1f}", 1),
        TableRow("inference_bytes", "peak memory, MB", "{:,.1f}", 1e-6),
        *SIZES,
    ),
    prompt=128,
    batch=128,
)
ENCODER_DECODER = TimingProtocol(
    time_encoder_decoder,
    (
        TableRow("encode_seconds", "encode, ms", "{:,.1f}", 1e3),
        TableRow("decode_tokens_per_second", "decode, tokens/s", "{:,.1f}", 1),
        TableRow("whole_seconds", "both, ms", "{:,.1f}", 1e3),
        TableRow("inference_bytes", "peak memory, MB", "{:,.1f}", 1e-6),
        *SIZES,
    ),
    prompt=128,
    batch=128,
)
PROTOCOLS = {LANGUAGE_MODEL: LANGUAGE, CLASSIFICATION: ENCODER, ANSWERS: ENCODER, GENERATION: ENCODER_DECODER}
