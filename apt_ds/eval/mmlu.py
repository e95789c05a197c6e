"""MMLU with the protocol of its authors: five solved examples, then the most probable of the four letters.

Prompts equal those of lm-evaluation-harness's task `mmlu`, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from tqdm import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.data.mmlu import CATEGORIES, LETTERS, Mmlu, Question
from apt_ds.eval.choice_scores import Encoder, TokenIds, choice_scores, shared_length
from apt_ds.eval.held_out import evaluation_mode
from apt_ds.eval.resume_file import ResumeFile
from apt_ds.models.unwrap import pretrained_model
from apt_ds.runtime import collectives, zero

DEFAULT_CONTEXT = 2048  # for a model whose configuration names no context


@dataclass(frozen=True)
class Settings:
    """How the questions are asked.

    Attributes:
        num_shots: Solved examples before a question.
        batch_size: Questions per device and forward pass.
        max_length: Maximum tokens of a prompt. 0 means the model's context.
        reuse_prefix: Whether the shots of a subject run once instead of once a question.
    """

    num_shots: int = 5
    batch_size: int = 8
    max_length: int = 0
    reuse_prefix: bool = True

    def answer_key(self) -> dict[str, Any]:
        """The settings that answers depend on. The batch size may change when an interrupted run resumes."""
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}


@dataclass
class Result:
    """Answers by subject, in the order of `Mmlu.test`.

    Attributes:
        choices: The index of each chosen letter.
        correct: Whether each choice is correct.
    """

    choices: dict[str, list[int]]
    correct: dict[str, list[bool]]

    def figures(self) -> dict[str, Any]:
        """`accuracy`, `stderr` and `count` of all questions, and the same in `by_subject` and `by_category`."""
        groups = {name: [s for s in members if s in self.correct] for name, members in CATEGORIES.items()}
        return accuracy_of(answer for answers in self.correct.values() for answer in answers) | {
            "by_category": {
                name: accuracy_of(answer for subject in members for answer in self.correct[subject])
                for name, members in groups.items()
                if members
            },
            "by_subject": {subject: accuracy_of(answers) for subject, answers in self.correct.items()},
        }


def evaluate(
    runner: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mmlu,
    settings: Settings | None = None,
    resume_file: ResumeFile | None = None,
) -> Result:
    """Ask all questions. Leaves the model in eval mode. Collective.

    Args:
        runner: A causal language model, or an engine around it.
        tokenizer: Its tokenizer.
        questions: Solved examples and questions.
        settings: How the questions are asked.
        resume_file: Where answers of finished subjects are stored and found.

    Raises:
        UserError: A subject has too few solved examples, or a question alone exceeds the context.
    """
    settings = settings or Settings()
    runner.eval()
    encoder = Encoder(tokenizer)
    max_tokens = max_prompt_tokens(pretrained_model(runner).config, settings.max_length)
    check_shots(questions, settings.num_shots)
    choices: dict[str, list[int]] = {}
    for subject in tqdm(questions.test, unit="subject", disable=not collectives.is_main(), desc="MMLU"):
        answers = resume_file.find(subject) if resume_file else None
        if answers is None:
            shots = questions.dev[subject][: settings.num_shots]
            answers = answer_subject(runner, encoder, questions.test[subject], shots, max_tokens, settings)
            if resume_file:
                resume_file.add(subject, answers)
        choices[subject] = answers
    correct = {
        subject: [chosen == question.answer for chosen, question in zip(answers, questions.test[subject], strict=True)]
        for subject, answers in choices.items()
    }
    return Result(choices, correct)


class MmluEvaluator:
    """MMLU of a model in training. Its questions are the same on all ranks."""

    def __init__(self, questions: Mmlu, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        """Check questions and tokenizer.

        Args:
            questions: Solved examples and questions.
            tokenizer: The model's tokenizer.
            batch_size: Questions per device and forward pass.

        Raises:
            UserError: A subject has too few solved examples, or the tokenizer has no token for a letter.
        """
        self.questions, self.tokenizer = questions, tokenizer
        self.settings = Settings(batch_size=batch_size)
        check_shots(questions, self.settings.num_shots)
        Encoder(tokenizer)

    def accuracy(self, engine: nn.Module) -> float:
        """Accuracy over all questions, in percent. The engine stays in its mode. Collective."""
        with evaluation_mode(engine):
            result = evaluate(engine, self.tokenizer, self.questions, self.settings)
        correct = [answer for answers in result.correct.values() for answer in answers]
        return 100.0 * sum(correct) / len(correct)


def answer_subject(
    runner: nn.Module,
    encoder: Encoder,
    questions: list[Question],
    shots: list[Question],
    max_tokens: int,
    settings: Settings,
) -> list[int]:
    """The index of the chosen letter for each question of one subject. Collective."""
    rows = encoder([prompt(question, shots) for question in questions])
    fitting = [i for i, row in enumerate(rows) if len(row) <= max_tokens]
    too_long = [i for i, row in enumerate(rows) if len(row) > max_tokens]
    for i in too_long:
        rows[i] = shortened(encoder, questions[i], shots, max_tokens)
    choices = [0] * len(rows)
    for members, reuse in ((fitting, settings.reuse_prefix), (too_long, False)):
        if not members:
            continue
        group = [rows[i] for i in members]
        prefix = shared_length(group) if reuse else 0
        scores = choice_scores(runner, group, encoder.choice_ids, settings.batch_size, zero.device(), prefix)
        for i, chosen in zip(members, scores.argmax(dim=1).tolist(), strict=True):
            choices[i] = chosen
    return choices


def shortened(encoder: Encoder, question: Question, shots: list[Question], max_tokens: int) -> TokenIds:
    """The prompt with as many of the last shots as fit.

    Raises:
        UserError: The question does not fit without any shot.
    """
    rows = encoder([prompt(question, shots[dropped:]) for dropped in range(len(shots) + 1)])
    fitting = next((row for row in rows if len(row) <= max_tokens), None)
    if fitting is None:
        where = f", line {question.line} of its file" if question.line else ""
        raise UserError(
            f"a context of {max_tokens} tokens is too small: "
            f"a question of {question.subject}{where} needs {len(rows[-1])} without any shot. "
            "Evaluate a model with a longer context, or leave the subject out with --subjects"
        )
    return fitting


def prompt(question: Question, shots: Iterable[Question]) -> str:
    """The text before the answer. The answer starts with a space."""
    topic = question.subject.replace("_", " ")
    solved = "".join(f"{with_choices(shot)} {LETTERS[shot.answer]}\n\n" for shot in shots)
    return (
        f"The following are multiple choice questions (with answers) about {topic}.\n\n{solved}{with_choices(question)}"
    )


def with_choices(question: Question) -> str:
    """A question with its choices."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True)]
    return "\n".join([question.text.strip(), *lines, "Answer:"])


def max_prompt_tokens(config: PretrainedConfig, max_length: int) -> int:
    """Maximum tokens of a prompt: the model's context, or `max_length` if that is less and not 0."""
    context = getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT
    return min(context, max_length) if max_length else context


def check_shots(questions: Mmlu, num_shots: int) -> None:
    """Check the solved examples of every subject.

    Raises:
        UserError: A subject has fewer than `num_shots`.
    """
    for subject in questions.test:
        if len(questions.dev[subject]) < num_shots:
            raise UserError(
                f"--num_shots {num_shots} is not allowed: {subject} has {len(questions.dev[subject])} solved examples"
            )


def accuracy_of(correct: Iterable[bool]) -> dict[str, float | int | None]:
    """`accuracy`, `stderr` (of a sample mean, None for one question) and `count` of questions."""
    values = list(correct)
    accuracy = sum(values) / len(values)
    stderr = math.sqrt(accuracy * (1 - accuracy) / (len(values) - 1)) if len(values) > 1 else None
    return {"accuracy": accuracy, "stderr": stderr, "count": len(values)}


def render(figures: dict[str, Any]) -> str:
    """The table: subjects, categories, all."""
    rows = [*figures["by_subject"].items(), *figures["by_category"].items(), ("all", figures)]
    lines = [f"{'':38}{'accuracy':>10}{'± stderr':>10}{'questions':>11}"]
    for name, row in rows:
        stderr = "" if row["stderr"] is None else f"{100 * row['stderr']:.2f}"
        lines.append(f"{name:38}{100 * row['accuracy']:>9.2f}%{stderr:>10}{row['count']:>11}")
    return "\n".join(lines)
