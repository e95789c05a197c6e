"""Answers that a language model writes to many prompts, in batches over all ranks.

Prompts are padded on the left. Batches have prompts of similar length, the longest first, so that too little memory
shows at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from apt_ds.data.conversations import Example
from apt_ds.data.instructions import encode
from apt_ds.data.special_tokens import resolve_pad_id
from apt_ds.eval.held_out import evaluation_mode, rank_batches
from apt_ds.models.unwrap import pretrained_model
from apt_ds.runtime import collectives, heartbeat, zero

PROGRESS = 30.0  # seconds between two lines of progress
_MANY = 1 << 20  # tokens that no probe has


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are written.

    Attributes:
        max_new_tokens: Most tokens of an answer, its end token included.
        temperature: 0 takes the most probable token. Values above 0 sample.
        seed: The seed of sampling.
        per_device: Prompts of a rank's batch.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    per_device: int = 8


class Answer(NamedTuple):
    """What a model wrote.

    Attributes:
        text: The answer without special tokens.
        tokens: Its tokens, the end token included.
        finished: Whether the model ended it by itself.
    """

    text: str
    tokens: int
    finished: bool


@torch.no_grad()
def generate(
    runner: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    options: GenerationOptions,
) -> list[Answer]:
    """One answer to each prompt, in the order of the prompts, on every rank. Collective.

    Args:
        runner: A causal language model, or the engine that shards it.
        tokenizer: Its tokenizer.
        prompts: Token ids, at least one each.
        limits: Most tokens of each answer, at least 1.
        options: How answers are written. Its `max_new_tokens` limits all answers.
    """
    model: Any = pretrained_model(runner)
    stops = stop_ids(tokenizer, model.generation_config)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    own: list[tuple[int, Answer]] = []
    progress = _Progress(len(prompts))
    with evaluation_mode(runner), _settings(model, options, stops, resolve_pad_id(tokenizer)):
        for number, places in enumerate(rank_batches(len(order), options.per_device)):
            # a rank without prompts left writes one answer more, because sharded weights need every rank
            chosen = [order[place] for place in places] or [order[-1]]
            most = min(options.max_new_tokens, max(limits[i] for i in chosen))
            written = _batch(model, [prompts[i] for i in chosen], most, options, number)
            for i, ids in zip(chosen if places else [], written, strict=False):
                ids = ids[: min(limits[i], options.max_new_tokens)]
                own.append((i, answer_of(prompts[i], ids, stops, tokenizer)))
            progress.show(min(len(prompts), (number + 1) * options.per_device * collectives.world_size()))
    pairs = [pair for part in collectives.gather_objects(own) for pair in part]
    return [answer for _, answer in sorted(pairs, key=lambda pair: pair[0])]


def answer_of(
    prompt: Sequence[int], ids: Sequence[int], stops: frozenset[int], tokenizer: PreTrainedTokenizerBase
) -> Answer:
    """The answer in generated tokens.

    Args:
        prompt: the tokens before them.
        ids: generated tokens. What follows the first end token is padding.
        stops: end tokens.
        tokenizer: makes the text.
    """
    end = next((place for place, token in enumerate(ids) if token in stops), -1)
    own = list(ids) if end < 0 else list(ids[:end])

    def text_of(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # some tokenizers drop the blank before the first word of a text, which here follows the prompt
    head, whole = text_of(list(prompt[-1:])), text_of([*prompt[-1:], *own])
    text = whole[len(head) :] if whole.startswith(head) else text_of(own)
    if end < 0:
        # a cut may leave a part of a character
        return Answer(text.rstrip("\ufffd").rstrip(), len(own), False)
    return Answer(text, end + 1, True)


def stop_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> frozenset[int]:
    """The tokens that end an answer: those of model and tokenizer, and the special token that training ends it with."""
    given = generation.eos_token_id
    stops = {tokenizer.eos_token_id} | set(given if isinstance(given, list) else [given])
    last = encode(Example.from_instruction("a", "", "b"), tokenizer, _MANY)["input_ids"][-1]
    added = tokenizer.added_tokens_decoder.get(int(last))
    stops |= {int(last)} if added is not None and added.special else set()
    return frozenset(int(token) for token in stops if token is not None)


def _batch(
    model: Any, prompts: Sequence[Sequence[int]], most: int, options: GenerationOptions, number: int
) -> list[list[int]]:
    """The tokens that follow some prompts, padded on the right to one length."""
    device = zero.device()
    ids, mask = left_padded(prompts, model.generation_config.pad_token_id)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if options.temperature:
            torch.manual_seed(options.seed + number * collectives.world_size() + collectives.rank())
        written = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=most,
            synced_gpus=zero.is_partitioned(model) and collectives.world_size() > 1,
        )
    heartbeat.progress()
    answers: list[list[int]] = written[:, ids.shape[1] :].tolist()
    return answers


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of prompts that end together, int64 [prompts, longest] each."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


@contextmanager
def _settings(model: Any, options: GenerationOptions, stops: frozenset[int], pad_id: int) -> Iterator[None]:
    """Generate as the options say, whatever the model's folder says."""
    sampling = {"do_sample": True, "temperature": options.temperature, "top_k": 0, "top_p": 1.0}
    before = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=sorted(stops),
        pad_token_id=pad_id,
        use_cache=True,
        **(sampling if options.temperature else {"do_sample": False}),
    )
    try:
        yield
    finally:
        model.generation_config = before


class _Progress:
    """Lines of progress on rank 0."""

    def __init__(self, total: int) -> None:
        self.total, self.start = total, time.perf_counter()
        self.shown = self.start

    def show(self, done: int) -> None:
        now = time.perf_counter()
        if collectives.is_main() and now - self.shown > PROGRESS and done < self.total:
            self.shown = now
            seconds = now - self.start
            print(f"{done:,} of {self.total:,} answers, {seconds:,.0f} s", file=sys.stderr, flush=True)
