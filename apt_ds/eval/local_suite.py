"""The suite `local`: tasks that a small language model is above chance on, from a data folder, without a download."""

from __future__ import annotations

import math
from typing import Any

from apt_ds.data.choice_questions import Question, Task
from apt_ds.eval.continuation_scores import continuation_scores, encode
from apt_ds.eval.held_out import evaluation_mode
from apt_ds.eval.loading import LoadedModel
from apt_ds.eval.mmlu import max_prompt_tokens
from apt_ds.models.architectures import find_architecture

Z_95 = 1.959964  # of the normal distribution, both sides
MEAN = "mean"


def evaluate(loaded: LoadedModel, tasks: list[Task], batch_size: int) -> dict[str, dict[str, Any]]:
    """Answer the questions of all tasks. Collective.

    A choice is the answer whose log-likelihood is largest, divided by its bytes where the task says so. The only choice
    of a question is right if the model would write it: if each of its tokens is the most probable one.

    Args:
        loaded: A causal language model.
        tasks: Questions by task.
        batch_size: Texts per device and forward pass.

    Returns:
        By task `accuracy`, its 95 % interval `low` and `high`, `chance` and `count`. Where questions have a single
        choice also `log_likelihood`, the mean of a choice in nats. And the mean of the accuracies as `mean`.
    """
    results: dict[str, dict[str, Any]] = {}
    with evaluation_mode(loaded.runner):
        for task in tasks:
            results[task.name] = _answer(loaded, task, batch_size)
    accuracies, counts = zip(*((row["accuracy"], row["count"]) for row in results.values()), strict=True)
    errors = [accuracy * (1 - accuracy) / count for accuracy, count in zip(accuracies, counts, strict=True)]
    mean, half = sum(accuracies) / len(accuracies), Z_95 * math.sqrt(sum(errors)) / len(accuracies)
    chance = sum(row["chance"] for row in results.values()) / len(results)
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return results | {MEAN: {"accuracy": mean, "low": low, "high": high, "chance": chance, "count": sum(counts)}}


def _answer(loaded: LoadedModel, task: Task, batch_size: int) -> dict[str, Any]:
    """The figures of one task. Collective."""
    config, tokenizer = loaded.model.config, loaded.tokenizer
    spec = find_architecture(config)
    begin = tokenizer.bos_token_id if spec is not None and spec.begins_with_bos else None
    pairs = [(question.context, text) for question in task.questions for text in question.choices]
    rows = encode(tokenizer, pairs, max_prompt_tokens(config, 0), begin)
    scores, greedy = continuation_scores(loaded.runner, rows, batch_size, loaded.device)
    values = scores.tolist()
    correct, start = 0, 0
    for question in task.questions:
        end = start + len(question.choices)
        correct += bool(greedy[start]) if len(question.choices) == 1 else is_right(question, values[start:end], task)
        start = end
    count = len(task.questions)
    low, high = wilson_interval(correct, count)
    figures = {"accuracy": correct / count, "low": low, "high": high, "chance": task.chance, "count": count}
    return figures | ({"log_likelihood": sum(values) / count} if len(values) == count else {})


def is_right(question: Question, values: list[float], task: Task) -> bool:
    """Whether the most probable choice is the right one.

    Args:
        question: The question.
        values: The log-likelihood of each choice, in nats.
        task: The task, which says whether a choice's length in bytes divides its log-likelihood.
    """
    lengths = [len(text.encode()) if task.by_length else 1 for text in question.choices]
    scores = [value / length for value, length in zip(values, lengths, strict=True)]
    return scores.index(max(scores)) == question.answer


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of Wilson for a share of `correct` among `count` questions."""
    share, z2 = correct / count, Z_95**2 / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def render(results: dict[str, dict[str, Any]]) -> str:
    """The table: a line per task, and the mean."""
    lines = [f"{'task':20}{'accuracy':>10}{'95 % interval':>19}{'chance':>9}{'questions':>11}{'log-likelihood':>16}"]
    for name, row in results.items():
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %"
        likelihood = f"{row['log_likelihood']:.3f}" if "log_likelihood" in row else ""
        lines.append(
            f"{name:20}{100 * row['accuracy']:>9.1f}%{interval:>19}{100 * row['chance']:>8.1f}%{row['count']:>11}"
            f"{likelihood:>16}"
        )
    return "\n".join(lines)
