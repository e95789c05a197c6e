"""Questions for a language model that need no download: GLUE's classes as words, next sentences, last words.

The questions of a data folder are always the same, in an order drawn with a fixed seed. The first N are a part of them.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from apt_ds.config.errors import UserError
from apt_ds.config.paths import shortened
from apt_ds.data import glue
from apt_ds.data.text_slices import TextPart

SEED = 0
FLAG = "--data_dir"
CANDIDATES = 4  # of the next sentence
WIKIPEDIA_HALF = TextPart(Path("plain/wikipedia.txt"), "50%")  # the first half is free for calibration
SST2 = Path("sst2")  # train.tsv and validation.tsv
WIKITEXT = Path("wikitext2/validation.txt")
_SENTENCE_END = re.compile(r"(?<=[a-z\d)]{3}[.!?]) (?=[A-Z])")  # after three letters: `St. Vincent` has none
_WORD = re.compile(r"(.*\S)( [A-Za-z]{3,})[.!?]", re.DOTALL)


class Question(NamedTuple):
    """A text, the texts that may follow it, and which of them is right.

    Attributes:
        context: The text.
        choices: Each begins with a space. A single one is a word to predict.
        answer: Index of the right choice.
    """

    context: str
    choices: tuple[str, ...]
    answer: int = 0


@dataclass(frozen=True)
class Task:
    """Questions of one kind.

    Attributes:
        name: Its name in tables.
        questions: In a fixed order.
        by_length: Whether log-likelihoods are divided by the length of a choice.
    """

    name: str
    questions: tuple[Question, ...]
    by_length: bool = False

    @property
    def chance(self) -> float:
        """Accuracy without a model: of drawing a choice, or of the most frequent right answer if that is more."""
        right = [question.choices[question.answer] for question in self.questions]
        most = max(right.count(text) for text in set(right)) / len(right)
        count = len(self.questions[0].choices)
        return max(most, 1 / count) if count > 1 else most


def load(data_dir: str, limit: int = 0) -> list[Task]:
    """The tasks of a data folder.

    Args:
        data_dir: It has sst2/, plain/wikipedia.txt and wikitext2/validation.txt.
        limit: Questions of a task. 0: all.

    Raises:
        UserError: The folder lacks a file, or a file has no question.
    """
    if not os.path.isdir(data_dir):
        raise UserError(f"{FLAG} {shortened(data_dir)!r} is not a folder. Give one with sst2/, plain/ and wikitext2/")
    if missing := [path for path in (SST2, WIKIPEDIA_HALF.path, WIKITEXT) if not (Path(data_dir) / path).exists()]:
        raise UserError(f"{FLAG} {data_dir!r} lacks {missing[0]}, which the suite asks from")
    tasks = []
    for name, (read, by_length) in TASKS.items():
        questions = read(Path(data_dir))
        if not questions:
            raise UserError(f"{FLAG} {data_dir!r} has no question for {name}. Give larger files")
        random.Random(SEED).shuffle(questions)
        tasks.append(Task(name, tuple(questions[: limit or None]), by_length))
    return tasks


def sentiment(folder: Path) -> list[Question]:
    """SST-2: reviews with the word of their class, after solved ones."""
    shots = balanced("sst2", folder / SST2, 4)
    solved = "".join(f"{_review(pair)}{SENTIMENTS[int(pair.label)]}\n\n" for pair in shots)
    pairs = glue.read("sst2", str(folder / SST2), "validation")
    return [Question(solved + _review(pair), SENTIMENTS, int(pair.label)) for pair in pairs]


SENTIMENTS = (" negative", " positive")


def _review(pair: glue.Pair) -> str:
    return f"Review: {pair.first.strip()}\nSentiment:"


def balanced(task: str, folder: Path, count: int) -> list[glue.Pair]:
    """Solved examples of a GLUE task, `count` in all, with the classes in turn.

    Raises:
        UserError: A class has too few examples.
    """
    pairs = glue.read(task, str(folder), "train")
    random.Random(SEED).shuffle(pairs)
    classes = [[pair for pair in pairs if pair.label == label] for label in range(len(glue.labels_of(task)))]
    if min(map(len, classes)) < -(-count // len(classes)):
        raise UserError(f"{folder} has too few training examples of a class. Give at least {count} of each")
    return [classes[i % len(classes)][i // len(classes)] for i in range(count)]


def next_sentence(folder: Path) -> list[Question]:
    """The sentence that follows a passage of an article, against sentences of other articles."""
    part = WIKIPEDIA_HALF._replace(path=folder / WIKIPEDIA_HALF.path)
    articles = enumerate(part.read(FLAG).split("\n\n"))
    triples = [(number, *pair) for number, text in articles for line in text.split("\n") for pair in passages(line)]
    draw = random.Random(SEED)
    questions = []
    for article, context, right in triples:
        answer, choices = draw.randrange(CANDIDATES), [right]
        for i in draw.sample(range(len(triples)), min(len(triples), 4 * CANDIDATES)):
            other, _, sentence = triples[i]
            if len(choices) < CANDIDATES and other != article and sentence not in choices:
                choices.append(sentence)
        if len(choices) == CANDIDATES:
            choices[0], choices[answer] = choices[answer], choices[0]
            questions.append(Question(context, tuple(f" {text}" for text in choices), answer))
    return questions


def passages(paragraph: str) -> Iterator[tuple[str, str]]:
    """The first sentences of a paragraph and the sentence after them. None of a short paragraph."""
    sentences = _SENTENCE_END.split(paragraph.strip())
    for count in range(2, len(sentences)):
        context, right = " ".join(sentences[:count]), sentences[count]
        if 100 <= len(context) <= 600 and 40 <= len(right) <= 200:
            yield context, right
            return


def last_word(folder: Path) -> list[Question]:
    """The last word of a sentence, where the passage before has it too. At most one of each paragraph."""
    questions = []
    for paragraph in TextPart(folder / WIKITEXT).read(FLAG).split("\n"):
        sentences = _SENTENCE_END.split(detokenized(paragraph))
        for count in range(2, len(sentences) + 1):
            match = _WORD.fullmatch(" ".join(sentences[:count]))
            if match is None or not 100 <= len(match[1]) <= 800 or match[1].count("<unk>") > 3:
                continue
            if re.search(rf"{match[2]}\b", match[1]):
                questions.append(Question(match[1], (match[2],)))
                break
    return questions


def detokenized(text: str) -> str:
    """WikiText's separated tokens as ordinary text."""
    text = re.sub(r" @([-,.])@ ", r"\1", text.strip())
    text = re.sub(r" ([,.;:!?)\]%]|'s\b|n't\b)", r"\1", text)
    return re.sub(r"([(\[$]) ", r"\1", re.sub(r'" ([^"]*) "', r'"\1"', text))


TASKS: dict[str, tuple[Callable[[Path], list[Question]], bool]] = {
    "sst2": (sentiment, False),
    "next_sentence": (next_sentence, True),
    "last_word": (last_word, False),
}
