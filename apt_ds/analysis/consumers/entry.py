"""What a model must answer, and how well a consumer of its folder did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

COUNT = 8  # tokens to generate


@dataclass(frozen=True)
class Expected:
    """Greedy tokens of a model.

    Attributes:
        text: the prompt.
        prompt: its tokens.
        tokens: the tokens that follow it.
        logprobs: their log-probabilities.
    """

    text: str
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]


@torch.no_grad()
def expected_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Expected:
    """The greedy tokens of a model after a text. Tokens that end a text do not end this one."""
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = list(prompt)
    logprobs = []
    for _ in range(COUNT):
        last = model(torch.tensor([tokens], device=model.device)).logits[0, -1].float().log_softmax(-1)
        tokens.append(int(last.argmax()))
        logprobs.append(float(last.max()))
    return Expected(text, prompt, tokens[len(prompt) :], logprobs)


@dataclass(frozen=True)
class Case:
    """A model folder and what it must answer."""

    folder: Path
    expected: Expected


@dataclass(frozen=True)
class Entry:
    """How a consumer did on one folder.

    Attributes:
        status: 'equal': all tokens are equal and the log-probabilities close. 'differs': they are not. 'fails': the
            consumer does not load the folder or ends. 'not run': the consumer is not installed.
        equal_tokens: tokens that are equal until the first that is not.
        error: the largest difference of log-probabilities of tokens that are equal.
        reason: why it fails or was not run, in one line.
    """

    status: str
    equal_tokens: int = 0
    error: float = 0.0
    reason: str = ""

    @property
    def equal(self) -> bool:
        """Whether the consumer answers as the model."""
        return self.status == "equal"


def compare(tokens: list[int], logprobs: list[float], reference: Expected, tolerance: float) -> Entry:
    """The entry of an answer.

    Args:
        tokens: the consumer's tokens.
        logprobs: their log-probabilities, [] if the consumer has none.
        reference: what they must be.
        tolerance: the largest difference of log-probabilities.
    """
    pairs = zip(tokens, reference.tokens, strict=False)
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(reference.tokens)))
    differences = [abs(a - b) for a, b in zip(logprobs[:equal], reference.logprobs, strict=False)]
    error = max(differences, default=0.0)
    # a comparison with NaN is false
    close = len(logprobs) in (0, len(tokens)) and all(difference <= tolerance for difference in differences)
    good = equal == len(reference.tokens) == len(tokens) and close
    return Entry("equal" if good else "differs", equal, error)
