"""SQuAD: the answers of questions from the logits of their windows.

A window's answer is a few numbers, so ranks exchange answers and never logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from apt_ds.data.squad import NO_ANSWER, Features, Question, Span


class WindowAnswer(NamedTuple):
    """The best answer of one window.

    Attributes:
        blank: score of CLS, the sum of its two logits.
        score: score of the piece, the sum of the logits of its first and last token.
        span: the characters of the piece in the context. None where the window has no token of a context.
    """

    blank: float
    score: float
    span: Span | None


def window_answer(
    features: Features, window: int, start_logits: np.ndarray, end_logits: np.ndarray, max_answer: int = 30
) -> WindowAnswer:
    """The likeliest piece of at most `max_answer` tokens in one window.

    Args:
        features: All windows.
        window: The number of this one.
        start_logits: Floats [L], L at least the length of the window.
        end_logits: The same for the last token.
        max_answer: Tokens of the longest piece.
    """
    offsets = features.offsets[window]
    starts, ends = np.asarray(start_logits, np.float64), np.asarray(end_logits, np.float64)
    blank = float(starts[NO_ANSWER] + ends[NO_ANSWER])
    inside = [(i, place) for i, place in enumerate(offsets) if place is not None]
    if not inside:
        return WindowAnswer(blank, -math.inf, None)
    places = np.array([i for i, _ in inside], np.int64)
    reach = _reach(len(inside))
    allowed = (reach >= 0) & (reach < max_answer)
    scores = np.where(allowed, starts[places][:, None] + ends[places][None, :], -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return WindowAnswer(blank, float(scores[first, last]), (inside[first][1][0], inside[last][1][1]))


@lru_cache(maxsize=64)
def _reach(length: int) -> np.ndarray:
    """Last token minus first token of every pair, int64 [length, length]."""
    return np.arange(length)[None, :] - np.arange(length)[:, None]


def best_answers(
    features: Features, window_answers: Sequence[WindowAnswer], questions: Sequence[Question]
) -> dict[str, tuple[str, float]]:
    """Of each question, by id: the likeliest piece of its context, and how much likelier it is that there is no answer.

    `window_answers` has the answer of every window. The score is the lowest of the windows' scores of CLS minus the
    piece's, in logits. Where the tokenizer finds nothing in a context, the answer is ('', 0).
    """
    best: dict[int, tuple[float, Span]] = {}
    blank: dict[int, float] = {}
    for example, answer in zip(features.examples, window_answers, strict=True):
        blank[example] = min(blank.get(example, math.inf), answer.blank)
        if answer.span is not None and (example not in best or answer.score > best[example][0]):
            best[example] = answer.score, answer.span
    return {
        question.id: (question.context[slice(*best[i][1])], blank[i] - best[i][0]) if i in best else ("", 0.0)
        for i, question in enumerate(questions)
    }


def answers(
    features: Features,
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    questions: Sequence[Question],
    max_answer: int = 30,
) -> dict[str, tuple[str, float]]:
    """`best_answers` from the logits of every window, see `window_answer`."""
    ends = enumerate(zip(start_logits, end_logits, strict=True))
    window_answers = [window_answer(features, window, start, end, max_answer) for window, (start, end) in ends]
    return best_answers(features, window_answers, questions)
