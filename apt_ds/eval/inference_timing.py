"""One pass of a model over random tokens, timed, for each kind of model: what `inference_cost.py` repeats and compares.

A language model reads a prompt and writes greedily at batch 1. An encoder reads a batch once (the paper: 128 sequences
of 128 tokens). A writer (T5) encodes a batch and writes greedily, with its cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL

Figures = dict[str, float | int]
Row = tuple[str, str, str, float]


@dataclass(frozen=True)
class Plan:
    """What is run. Lengths in tokens; max_batch bounds the search for the largest batch, 0: until memory ends.

    prompt, batch: 0 means what is usual for the kind of model. A language model runs at batch 1, and at `batch` too
    where that is above 1. Other models run at `batch` alone.
    """

    prompt: int = 0
    new_tokens: int = 32
    rounds: int = 5
    max_batch: int = 16
    batch: int = 0


@dataclass(frozen=True)
class Kind:
    """How models of a task are measured.

    run: one pass, its figures; rows: key, label, format and scale of the table's figures.
    prompt, batch: the usual tokens of a prompt and sequences at once.
    """

    run: Callable[[PreTrainedModel, Plan], Figures]
    rows: tuple[Row, ...]
    prompt: int
    batch: int

    def complete(self, plan: Plan) -> Plan:
        """The plan with this kind's usual prompt and batch where it gives none."""
        return replace(plan, prompt=plan.prompt or self.prompt, batch=plan.batch or self.batch)


def prompts(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    """Random ids [batch, length], the same for every model of a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, length), generator=generator)
    return ids.to(model.device)


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def run_once(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of reading the prompts [batch, length], and of `new_tokens` greedy tokens after them."""
    start = now(model.device)
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    read = now(model.device)
    for _ in range(new_tokens):
        following = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=following, past_key_values=out.past_key_values, use_cache=True)
    return read - start, now(model.device) - read


def read_and_go_on(model: PreTrainedModel, plan: Plan) -> Figures:
    """A language model at batch 1."""
    prefill, decode = run_once(model, prompts(model, 1, plan.prompt), plan.new_tokens)
    return {"prefill_seconds": prefill, "decode_tokens_per_second": plan.new_tokens / decode}


def run_at_batch(model: PreTrainedModel, plan: Plan) -> Figures:
    """A language model at the batch size that was asked for."""
    prefill, decode = run_once(model, prompts(model, plan.batch, plan.prompt), plan.new_tokens)
    speed = plan.batch * plan.new_tokens / decode
    return {"inference_batch_prefill_seconds": prefill, "inference_batch_tokens_per_second": speed}


@torch.no_grad()
def read(model: PreTrainedModel, plan: Plan) -> Figures:
    """An encoder with its head: one forward pass."""
    ids = prompts(model, plan.batch, plan.prompt)
    start = now(model.device)
    model(input_ids=ids)
    seconds = now(model.device) - start
    return {"forward_seconds": seconds, "sequences_per_second": plan.batch / seconds}


@torch.no_grad()
def encode_and_write(model: PreTrainedModel, plan: Plan) -> Figures:
    """An encoder and a decoder: the source is read once, tokens are written one by one."""
    ids = prompts(model, plan.batch, plan.prompt)
    start = now(model.device)
    encoded = model.get_encoder()(input_ids=ids)
    read = now(model.device)
    following = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
    past = None
    for _ in range(plan.new_tokens):
        out = model(encoder_outputs=encoded, decoder_input_ids=following, past_key_values=past, use_cache=True)
        following, past = out.logits[:, -1:].argmax(-1), out.past_key_values
    decode = now(model.device) - read
    speed = plan.batch * plan.new_tokens / decode
    return {"encode_seconds": read - start, "decode_tokens_per_second": speed, "whole_seconds": read - start + decode}


SIZES: tuple[Row, ...] = (
    ("parameters", "parameters, all", "{:,}", 1),
    ("parameters_without_embeddings", "parameters, without embeddings", "{:,}", 1),
    ("flops_per_token", "GFLOPs per token (weights)", "{:,.3f}", 1e-9),
    ("checkpoint_bytes", "checkpoint, MB", "{:,.1f}", 1e-6),
)
LANGUAGE = Kind(
    read_and_go_on,
    (
        ("prefill_seconds", "prefill, ms", "{:,.1f}", 1e3),
        ("decode_tokens_per_second", "decode at batch 1, tokens/s", "{:,.1f}", 1),
        ("batch", "largest batch found to fit", "{:,}", 1),
        ("batch_tokens_per_second", "decode at that batch, tokens/s", "{:,.1f}", 1),
        ("inference_bytes", "peak memory at batch 1, MB", "{:,.1f}", 1e-6),
        ("inference_batch_prefill_seconds", "prefill at batch {batch}, ms", "{:,.1f}", 1e3),
        ("inference_batch_tokens_per_second", "decode at batch {batch}, tokens/s", "{:,.1f}", 1),
        ("inference_batch_bytes", "peak memory at batch {batch}, MB", "{:,.1f}", 1e-6),
        *SIZES,
    ),
    256,
    1,
)
ENCODER = Kind(
    read,
    (
        ("forward_seconds", "forward pass, ms", "{:,.1f}", 1e3),
        ("sequences_per_second", "sequences/s", "{:,.1f}", 1),
        ("inference_bytes", "peak memory, MB", "{:,.1f}", 1e-6),
        *SIZES,
    ),
    128,
    128,
)
WRITER = Kind(
    encode_and_write,
    (
        ("encode_seconds", "encode, ms", "{:,.1f}", 1e3),
        ("decode_tokens_per_second", "decode, tokens/s", "{:,.1f}", 1),
        ("whole_seconds", "both, ms", "{:,.1f}", 1e3),
        ("inference_bytes", "peak memory, MB", "{:,.1f}", 1e-6),
        *SIZES,
    ),
    128,
    128,
)
KINDS = {LANGUAGE_MODEL: LANGUAGE, CLASSIFICATION: ENCODER, ANSWERS: ENCODER, GENERATION: WRITER}
