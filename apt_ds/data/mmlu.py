"""MMLU: 57 subjects of multiple-choice questions, from the original CSV folder or from the hub."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from apt_ds.config.errors import UserError
from apt_ds.config.paths import shortened
from apt_ds.data.formats import csv_problem, csv_reader, is_blank
from apt_ds.data.text import read_text

HUB_NAME = "cais/mmlu"
FLAG = "--data_dir"
LETTERS = "ABCD"
COLUMNS = 6  # question, four choices, the letter of the right one

# the grouping of the benchmark's authors. lm-evaluation-harness counts anatomy under STEM
CATEGORIES: dict[str, tuple[str, ...]] = {
    "STEM": (
        *("abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science"),
        *("college_mathematics", "college_physics", "computer_security", "conceptual_physics"),
        *("electrical_engineering", "elementary_mathematics", "high_school_biology", "high_school_chemistry"),
        *("high_school_computer_science", "high_school_mathematics", "high_school_physics"),
        *("high_school_statistics", "machine_learning"),
    ),
    "humanities": (
        *("formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history"),
        *("international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios"),
        *("philosophy", "prehistory", "professional_law", "world_religions"),
    ),
    "social sciences": (
        *("econometrics", "high_school_geography", "high_school_government_and_politics"),
        *("high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology"),
        *("human_sexuality", "professional_psychology", "public_relations", "security_studies", "sociology"),
        "us_foreign_policy",
    ),
    "other": (
        *("anatomy", "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging"),
        *("management", "marketing", "medical_genetics", "miscellaneous", "nutrition"),
        *("professional_accounting", "professional_medicine", "virology"),
    ),
}
SUBJECTS = tuple(sorted(subject for group in CATEGORIES.values() for subject in group))


class Question(NamedTuple):
    """One question.

    Attributes:
        subject: one of `SUBJECTS`.
        text: the question.
        choices: the answers to choose from.
        answer: the index of the right choice.
        line: where its file has it. 0: not from a file.
    """

    subject: str
    text: str
    choices: tuple[str, ...]
    answer: int
    line: int = 0


@dataclass(frozen=True)
class Mmlu:
    """Questions to ask (`test`) and solved examples to show before them (`dev`), by subject, in file order."""

    dev: dict[str, list[Question]]
    test: dict[str, list[Question]]

    def count(self) -> int:
        """Questions to ask."""
        return sum(len(questions) for questions in self.test.values())

    def first(self, limit: int) -> Mmlu:
        """At most `limit` questions of each subject."""
        return replace(self, test={subject: questions[:limit] for subject, questions in self.test.items()})

    def sampled(self, count: int, seed: int) -> Mmlu:
        """`count` questions drawn over all subjects, in file order. The same ones for the same data and seed.

        Raises:
            UserError: there are fewer.
        """
        everything = [question for questions in self.test.values() for question in questions]
        if count > len(everything):
            raise UserError(f"--sample {count} is not allowed: there are {len(everything)} questions")
        drawn = sorted(random.Random(seed).sample(range(len(everything)), count))
        test: dict[str, list[Question]] = {}
        for index in drawn:
            test.setdefault(everything[index].subject, []).append(everything[index])
        return replace(self, test=test)


def load(
    data_dir: str = "",
    subjects: Sequence[str] = (),
    limit: int = 0,
    sample: int = 0,
    seed: int = 0,
    flag: str = FLAG,
) -> Mmlu:
    """MMLU from a folder (dev/SUBJECT_dev.csv, test/SUBJECT_test.csv) or from the hub.

    Args:
        data_dir: the folder. Empty for the hub.
        subjects: the subjects to read. Empty for all 57.
        limit: questions of each subject. 0 takes all.
        sample: questions over all subjects, drawn after `limit`. 0 takes all.
        seed: draws the sample.
        flag: the option that named the folder, for messages.

    Raises:
        UserError: an unknown subject, files that are missing or broken (with file and line), too few questions.
    """
    wanted = sorted(set(subjects)) or list(SUBJECTS)
    for subject in wanted:
        if subject not in SUBJECTS:
            close = difflib.get_close_matches(subject, SUBJECTS, n=2) or ["abstract_algebra", "and 56 others"]
            raise UserError(f"--subjects: {subject!r} is not a subject of MMLU (did you mean {' or '.join(close)}?)")
    mmlu = _read_folder(Path(data_dir), wanted, flag) if data_dir else _read_hub(wanted)
    mmlu = mmlu.first(limit) if limit else mmlu
    return mmlu.sampled(sample, seed) if sample else mmlu


def _read_folder(folder: Path, wanted: list[str], flag: str) -> Mmlu:
    if not os.path.isdir(folder):
        raise UserError(
            f"{flag} {shortened(str(folder))!r} is not a folder. Give one that holds dev/ and test/ with CSV files"
        )
    paths = {(split, s): folder / split / f"{s}_{split}.csv" for split in ("dev", "test") for s in wanted}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise UserError(
            f"{flag} {str(folder)!r} lacks {missing[0].relative_to(folder)}"
            + (f" and {len(missing) - 1} more files" if len(missing) > 1 else "")
            + ". Give the folder of MMLU's original CSV files"
            + (", or --subjects for those that are there" if flag == FLAG else "")
        )
    return _by_subject(wanted, lambda split, subject: read_csv(paths[split, subject], subject))


def _by_subject(wanted: list[str], read: Callable[[str, str], list[Question]]) -> Mmlu:
    return Mmlu({s: read("dev", s) for s in wanted}, {s: read("test", s) for s in wanted})


def read_csv(path: Path, subject: str) -> list[Question]:
    """The questions of one file, which has no header: question, four choices, letter. Blank lines are no records.

    Raises:
        UserError: it cannot be read, is empty, or a record is not of this form. The message names file and line.
    """
    questions = []
    reader = csv_reader(io.StringIO(read_text(path), newline=""))
    try:
        for row in reader:
            if not is_blank(row):
                questions.append(_question(row, subject, f"{path}, line {reader.line_num}", reader.line_num))
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV: {csv_problem(error)}") from None
    if not questions:
        raise UserError(f"{path} holds no question. Give lines of question, four choices and a letter")
    return questions


def _question(row: list[str], subject: str, where: str, line: int) -> Question:
    if len(row) != COLUMNS:
        raise UserError(f"{where} has {len(row)} columns. Give {COLUMNS}: question, four choices, letter")
    *choices, letter = row[1:]
    letter = letter.strip()
    if len(letter) != 1 or letter not in LETTERS:
        raise UserError(f"{where}: the last column is {letter[:40]!r}. Give the letter A, B, C or D, and no header")
    return Question(subject, row[0], tuple(choices), LETTERS.index(letter), line)


def _read_hub(wanted: list[str]) -> Mmlu:
    from datasets import load_dataset

    # one line of ours says what matters
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def read(split: str, subject: str) -> list[Question]:
        try:
            rows: Any = load_dataset(HUB_NAME, subject, split=split)
        except Exception as error:  # the library raises whatever its parts do
            text = " ".join(str(error).split())[:160]
            raise UserError(
                f"data set {HUB_NAME} cannot be loaded ({text}). Give --data_dir with MMLU's original CSV files"
            ) from None
        return [Question(subject, r["question"], tuple(r["choices"]), int(r["answer"])) for r in rows]

    return _by_subject(wanted, read)
