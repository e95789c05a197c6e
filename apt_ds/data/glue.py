"""GLUE: sentences and pairs of sentences with a label, from the hub or from local files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.data.readers import Located, Source, find_source, leave_out, text_of, value_of
from apt_ds.data.recipe import Recipe
from apt_ds.data.tokenized import Row, TokenizedSet
from apt_ds.data.tokenizer_checks import check_room, token_columns
from apt_ds.data.tokenizer_identity import tokenizer_identity

HUB_NAME = "nyu-mll/glue"
HIGHEST_SCORE = 5.0  # of STS-B


@dataclass(frozen=True)
class Glue:
    """One task.

    Attributes:
        texts: the names that the column of each of its one or two texts may have, the hub's first.
        labels: the names of the classes, in the order of their numbers. None for a score from 0 to 5.
        metrics: names of `eval.metrics`, the one that counts first.
        label_columns: names that the column of the label may have.
        validation: the hub's name of the split to judge on, and the first word of a local file.
        headerless: the columns of GLUE's own file where it has no header.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...] = ("accuracy",)
    label_columns: tuple[str, ...] = ("label",)
    validation: str = "validation"
    headerless: tuple[str, ...] = ()

    @property
    def main(self) -> str:
        """The metric that counts."""
        return self.metrics[0]

    def stems(self, split: str) -> tuple[str, ...]:
        """The names, without ending, that the file of `train` or `validation` may have."""
        if split == "train":
            return ("train",)
        return tuple(
            dict.fromkeys((self.validation, self.validation.replace("validation", "dev"), "validation", "dev"))
        )


_ENTAILMENT = ("entailment", "not_entailment")
_BOTH = (("sentence1",), ("sentence2",))
GLUE: dict[str, Glue] = {
    "sst2": Glue((("sentence",),), ("negative", "positive")),
    "mnli": Glue(
        (("premise", "sentence1"), ("hypothesis", "sentence2")),
        ("entailment", "neutral", "contradiction"),
        label_columns=("gold_label", "label"),
        validation="validation_matched",
    ),
    "qnli": Glue((("question",), ("sentence",)), _ENTAILMENT),
    "qqp": Glue(
        (("question1",), ("question2",)),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        label_columns=("label", "is_duplicate"),
    ),
    "mrpc": Glue(
        (("sentence1", "#1 String"), ("sentence2", "#2 String")),
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        label_columns=("label", "Quality"),
    ),
    "cola": Glue(
        (("sentence",),),
        ("unacceptable", "acceptable"),
        ("matthews", "accuracy"),
        headerless=("source", "label", "mark", "sentence"),
    ),
    "rte": Glue(_BOTH, _ENTAILMENT),
    "stsb": Glue(_BOTH, None, ("pearson", "spearman"), label_columns=("label", "score")),
}


def labels_of(task: str) -> tuple[str, ...]:
    """The names of a task's classes. Empty where it has no classes."""
    return (GLUE[task].labels or ()) if task in GLUE else ()


class Pair(NamedTuple):
    """One or two texts (`second` empty if one), the label's number or the score, and the place of the record."""

    first: str
    second: str
    label: int | float
    where: str


def read(task: str, path: str, split: str) -> list[Pair]:
    """The `train` or `validation` split of a task.

    Args:
        task: a name of `GLUE`.
        path: a file (all of it, whatever the split), a folder with train.* and validation.* or dev.* (TSV, CSV,
            JSON, JSON lines, and GLUE's own layouts), `glue`, or another hub data set with such columns.
        split: `train` or `validation`.

    Raises:
        UserError: an unknown task, no such data, or a record that does not fit. The message names file and line.
    """
    source = find(task, path, split)
    return list(read_pairs(task, source.records(), source.name))


def find(task: str, path: str, split: str) -> Source:
    """Where the records of a split are, see `read`."""
    assert split in ("train", "validation")
    if task not in GLUE:
        raise UserError(f"unknown task {task!r} of GLUE. Give one of {', '.join(GLUE)}")
    glue = GLUE[task]
    place = HUB_NAME if path == "glue" else path
    hub = ("", "train" if split == "train" else glue.validation, task if place == HUB_NAME else "")
    return find_source(place, glue.stems(split), hub=hub, headerless=glue.headerless)


def read_pairs(task: str, records: Iterable[Located], name: str) -> Iterator[Pair]:
    """The pairs of records, one at a time. After the last one it warns of what is left out."""
    blank: list[str] = []
    count = 0
    for record in records:
        pair = _pair(task, record)
        count += 1
        if pair.first.strip() or pair.second.strip():
            yield pair
        else:
            blank.append(pair.where)
    leave_out(blank, count, "there is no text", name)
    if len(blank) == count:
        raise UserError(f"{name} holds no records. Give a source with at least one")


def _pair(task: str, located: Located) -> Pair:
    where, record = located
    first, second = (*(text_of(record, names, where) for names in GLUE[task].texts), "")[:2]
    return Pair(first, second, _label(task, value_of(record, GLUE[task].label_columns, where), where), where)


def _label(task: str, value: Any, where: str) -> int | float:
    labels = GLUE[task].labels
    text = "null" if value is None else str(value).strip()
    usable = isinstance(value, str | int | float) and not isinstance(value, bool)
    if labels is None:
        try:
            score = float(text) if usable else math.nan
        except ValueError:
            score = math.nan
        if not 0 <= score <= HIGHEST_SCORE:
            raise UserError(
                f"{where}: {text[:40]!r} is not a score of {task}. Give a number from 0 to {HIGHEST_SCORE:g}"
            )
        return score
    if usable and text in labels:
        return labels.index(text)
    if usable and text in map(str, range(len(labels))):
        return int(text)
    allowed = ", ".join(f"{name} or {number}" for number, name in enumerate(labels))
    raise UserError(f"{where}: {text[:40]!r} is not a label of {task}. Give {allowed}")


def encode(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedSet:
    """Rows of input_ids, token_type_ids where the tokenizer makes them, and targets, the label alone.

    A text is cut from the right to `max_length` tokens in all, of a pair always the longer one.

    Raises:
        UserError: `max_length` leaves no room.
    """
    return TokenizedSet.of(PairEncoder(tokenizer, max_length, any(pair.second for pair in pairs))(pairs))


class PairEncoder:
    """Makes the rows of `encode`. twofold: whether the texts are pairs."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, twofold: bool) -> None:
        check_room(tokenizer, twofold, max_length)
        self.tokenizer, self.max_length, self.twofold = tokenizer, max_length, twofold

    def __call__(self, pairs: Sequence[Pair]) -> list[Row]:
        """The rows of some pairs."""
        texts = [[pair.first for pair in pairs]]
        if self.twofold:
            texts.append([pair.second for pair in pairs])
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length, verbose=False)
        columns = token_columns(self.tokenizer)
        return [
            {name: encoded[name][i] for name in columns} | {"targets": [pair.label]} for i, pair in enumerate(pairs)
        ]


def recipe(task: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Recipe[Pair]:
    """How the records of a task become rows, see `encode`."""
    identity = tokenizer_identity(tokenizer)
    return Recipe(
        partial(read_pairs, task),
        PairEncoder(tokenizer, max_length, len(GLUE[task].texts) == 2),
        lambda pair: (pair[:3], pair.where),
        _load_pair,
        {"task": task, "tokenizer": identity, "max_length": max_length},
    )


def _load_pair(parts: list[Any], where: str) -> Pair:
    first, second, label = parts
    return Pair(first, second, label, where)
