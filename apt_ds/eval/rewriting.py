"""Conversations with the answers of a model: its own answers as training targets (self-data distillation).

The last answer of each conversation is written again by the model, and earlier answers are context.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from torch import nn
from transformers import PreTrainedTokenizerBase

from apt_ds.data.conversations import Example
from apt_ds.data.prompts import prompt_ids
from apt_ds.data.rewritten import is_rewritable, with_answer
from apt_ds.eval.generated_answers import Answer, GenerationOptions, generate


@dataclass(frozen=True)
class RewritingFigures:
    """What rewriting did.

    Attributes:
        rewritten: Examples with a new answer.
        unfinished: Examples with a new answer that was cut at a limit.
        kept: Examples that stay as they were.
        dropped: Examples whose new answer is empty.
        tokens: Tokens of all new answers.
        seconds: Seconds of generation.
    """

    rewritten: int = 0
    unfinished: int = 0
    kept: int = 0
    dropped: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: RewritingFigures) -> RewritingFigures:
        return RewritingFigures(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def mean_tokens(self) -> float:
        """Tokens of a new answer."""
        return self.tokens / max(1, self.rewritten + self.dropped)

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.rewritten:,} answers rewritten ({self.unfinished:,} of them cut at the limit), {self.kept:,} "
            f"examples kept as they were, {self.dropped:,} dropped (empty answer), {self.mean_tokens:.1f} tokens an "
            f"answer, {self.seconds:,.1f} s"
        )

    def warning(self, limit: str, has_template: bool) -> str:
        """One line where most answers have no end, else ''.

        Args:
            limit: the options that limit answers.
            has_template: whether the tokenizer has a chat template.
        """
        if 2 * self.unfinished <= self.rewritten + self.dropped:
            return ""
        model = "A model without chat template often never ends: give an instruction-tuned model, or"
        return (
            f"{self.unfinished:,} of {self.rewritten + self.dropped:,} answers did not end at the limit of {limit}. "
            f"Their text is trained without an end of turn. {'Give' if has_template else model} a higher limit"
        )


@dataclass
class Plan:
    """What is to be written: `prompts` and `limits` (most tokens) of the examples of the numbers `chosen`."""

    examples: Sequence[Example]
    chosen: list[int]
    prompts: list[list[int]]
    limits: list[int]

    def describe(self, options: GenerationOptions) -> str:
        """What it costs, in one line."""
        way = f"at temperature {options.temperature:g}" if options.temperature else "greedily"
        return (
            f"rewriting {len(self.chosen):,} of {len(self.examples):,} answers {way}: prompts of "
            f"{sum(map(len, self.prompts)):,} tokens, at most {sum(self.limits):,} new tokens"
        )


def plan_of(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    options: GenerationOptions,
    now: datetime | None = None,
) -> Plan:
    """The prompts of all examples that a model can answer in `max_length` tokens, prompt included."""
    plan = Plan(examples, [], [], [])
    for number, example in enumerate(examples):
        prompt = prompt_ids(example, tokenizer, now) if is_rewritable(example) else []
        if prompt and len(prompt) < max_length:
            plan.chosen.append(number)
            plan.prompts.append(prompt)
            plan.limits.append(min(options.max_new_tokens, max_length - len(prompt)))
    return plan


def rewrite(
    runner: nn.Module, tokenizer: PreTrainedTokenizerBase, plan: Plan, options: GenerationOptions
) -> tuple[list[Example], RewritingFigures]:
    """The examples with the model's own answers, in their order, on every rank. Collective.

    Args:
        runner: A causal language model, or the engine that shards it.
        tokenizer: Its tokenizer.
        plan: What is to be written.
        options: How answers are written.
    """
    start = time.perf_counter()
    answers = generate(runner, tokenizer, plan.prompts, plan.limits, options) if plan.chosen else []
    return merged(plan, answers, time.perf_counter() - start)


def merged(plan: Plan, answers: Sequence[Answer], seconds: float) -> tuple[list[Example], RewritingFigures]:
    """The examples of a plan with their answers. Examples with an empty answer are left out."""
    by_number = dict(zip(plan.chosen, answers, strict=True))
    examples: list[Example] = []
    for number, example in enumerate(plan.examples):
        answer = by_number.get(number)
        if answer is None:
            examples.append(example)
        elif answer.text.strip():
            examples.append(with_answer(example, answer.text, answer.finished))
    filled = [answer for answer in answers if answer.text.strip()]
    figures = RewritingFigures(
        len(filled),
        sum(not answer.finished for answer in filled),
        len(plan.examples) - len(answers),
        len(answers) - len(filled),
        sum(answer.tokens for answer in answers),
        seconds,
    )
    return examples, figures
