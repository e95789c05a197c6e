"""MMLU as its authors ask it: five solved examples, then the letter the model finds likeliest.

Prompts are those of lm-evaluation-harness's task `mmlu`, byte for byte.
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
from apt_ds.eval.choice_scores import Encoder, Row, choice_scores, shared_length
from apt_ds.eval.resume_file import ResumeFile
from apt_ds.runtime import collectives, zero

UNBOUNDED = 2048  # for a model whose configuration names no context


@dataclass(frozen=True)
class Settings:
    """How to ask. max_length: tokens of a prompt, 0 for the model's context; reuse_prefix: run shots once a subject."""

    num_shots: int = 5
    batch_size: int = 8
    max_length: int = 0
    reuse_prefix: bool = True

    def answer_key(self) -> dict[str, Any]:
        """What answers depend on; a batch size may change when an interrupted run goes on."""
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}


@dataclass
class Result:
    """By subject, in the order of `Mmlu.test`: index of the chosen letter, and whether it is right."""

    choices: dict[str, list[int]]
    correct: dict[str, list[bool]]

    def figures(self) -> dict[str, Any]:
        """`accuracy`, `stderr`, `count` over all questions, and the same in `by_subject` and `by_category`."""
        groups = {name: [s for s in members if s in self.correct] for name, members in CATEGORIES.items()}
        return judged(answer for answers in self.correct.values() for answer in answers) | {
            "by_category": {
                name: judged(answer for subject in members for answer in self.correct[subject])
                for name, members in groups.items()
                if members
            },
            "by_subject": {subject: judged(answers) for subject, answers in self.correct.items()},
        }


def evaluate(
    runner: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mmlu,
    settings: Settings | None = None,
    progress: ResumeFile | None = None,
) -> Result:
    """Ask all questions of `questions` and compare the answers. Leaves the model in eval mode. Collective.

    runner: a causal language model or an engine that shards one. progress: where answers are kept subject by
    subject, and found again.

    Raises:
        UserError: too few examples for the shots, or a question that does not fit the context even without any.
    """
    settings = settings or Settings()
    runner.eval()
    encoder = Encoder(tokenizer)
    room = context_room(model_config(runner), settings.max_length)
    check_shots(questions, settings.num_shots)
    choices: dict[str, list[int]] = {}
    for subject in tqdm(questions.test, unit="subject", disable=not collectives.is_main(), desc="MMLU"):
        known = progress.find(subject) if progress else None
        if known is None:
            shots = questions.dev[subject][: settings.num_shots]
            known = answer_subject(runner, encoder, questions.test[subject], shots, room, settings)
            if progress:
                progress.keep(subject, known)
        choices[subject] = known
    correct = {
        subject: [chosen == question.answer for chosen, question in zip(found, questions.test[subject], strict=True)]
        for subject, found in choices.items()
    }
    return Result(choices, correct)


def answer_subject(
    runner: nn.Module,
    encoder: Encoder,
    questions: list[Question],
    shots: list[Question],
    room: int,
    settings: Settings,
) -> list[int]:
    """The index of the letter chosen for each question of one subject. Collective."""
    rows = encoder([prompt(question, shots) for question in questions])
    whole = [i for i, row in enumerate(rows) if len(row) <= room]
    short = [i for i in range(len(rows)) if len(rows[i]) > room]
    for i in short:
        rows[i] = shortened(encoder, questions[i], shots, room)
    choices = [0] * len(rows)
    for members, reuse in ((whole, settings.reuse_prefix), (short, False)):
        if not members:
            continue
        group = [rows[i] for i in members]
        prefix = shared_length(group) if reuse else 0
        scores = choice_scores(runner, group, encoder.letters, settings.batch_size, zero.device(), prefix)
        for i, chosen in zip(members, scores.argmax(dim=1).tolist(), strict=True):
            choices[i] = chosen
    return choices


def shortened(encoder: Encoder, question: Question, shots: list[Question], room: int) -> Row:
    """The prompt with as many of the last shots as fit."""
    rows = encoder([prompt(question, shots[dropped:]) for dropped in range(len(shots) + 1)])
    fitting = next((row for row in rows if len(row) <= room), None)
    if fitting is None:
        where = f", line {question.line} of its file" if question.line else ""
        raise UserError(
            f"a context of {room} tokens is too small: a question of {question.subject}{where} needs {len(rows[-1])} "
            "without any shot; evaluate a model with a longer context, or leave it out with --subjects"
        )
    return fitting


def prompt(question: Question, shots: Iterable[Question]) -> str:
    """All that stands before the answer; the answer itself begins with a space."""
    topic = question.subject.replace("_", " ")
    solved = "".join(f"{asked(shot)} {LETTERS[shot.answer]}\n\n" for shot in shots)
    return f"The following are multiple choice questions (with answers) about {topic}.\n\n{solved}{asked(question)}"


def asked(question: Question) -> str:
    """One question with its choices."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True)]
    return "\n".join([question.text.strip(), *lines, "Answer:"])


def model_config(runner: nn.Module) -> PretrainedConfig:
    """The configuration of a model, or of the model in an engine."""
    return (runner.module if isinstance(runner, zero.Engine) else runner).config


def context_room(config: PretrainedConfig, max_length: int) -> int:
    """Tokens a prompt may have."""
    own = getattr(config, "max_position_embeddings", None) or UNBOUNDED
    return min(own, max_length) if max_length else own


def check_shots(questions: Mmlu, num_shots: int) -> None:
    """Raise UserError if a subject has fewer solved examples."""
    for subject in questions.test:
        if len(questions.dev[subject]) < num_shots:
            raise UserError(
                f"--num_shots {num_shots} is not allowed: {subject} has {len(questions.dev[subject])} solved examples"
            )


def judged(answers: Iterable[bool]) -> dict[str, float | int | None]:
    """Accuracy, its standard error (of a sample mean; None for one question) and the number of questions."""
    values = list(answers)
    accuracy = sum(values) / len(values)
    spread = math.sqrt(accuracy * (1 - accuracy) / (len(values) - 1)) if len(values) > 1 else None
    return {"accuracy": accuracy, "stderr": spread, "count": len(values)}


def render(figures: dict[str, Any]) -> str:
    """The table: subjects, categories, all."""
    rows = [*figures["by_subject"].items(), *figures["by_category"].items(), ("all", figures)]
    lines = [f"{'':38}{'accuracy':>10}{'± stderr':>10}{'questions':>11}"]
    for name, row in rows:
        spread = "" if row["stderr"] is None else f"{100 * row['stderr']:.2f}"
        lines.append(f"{name:38}{100 * row['accuracy']:>9.2f}%{spread:>10}{row['count']:>11}")
    return "\n".join(lines)
