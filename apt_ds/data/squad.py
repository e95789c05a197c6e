"""SQuAD: questions about a context, answered by a piece of it or, in version 2, by nothing.

A long context is read through windows that overlap. The question comes first. The answer of a window without one is
the token before everything (CLS).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.data.readers import JSON, Located, Source, find_source, kind, log, text_of, value_of
from apt_ds.data.tokenized import Row, TokenizedSet
from apt_ds.data.tokenizer_checks import check_room, token_columns

HUB_NAMES = {"squad": "rajpurkar/squad", "squad_v2": "rajpurkar/squad_v2"}
STEMS = {
    "train": ("train", "train-v2.0", "train-v1.1"),
    "validation": ("validation", "dev", "dev-v2.0", "dev-v1.1"),
}
QUESTION_TOKENS = 64  # of a longer question the rest is not read
ENDINGS = (*JSON, ".parquet", ".arrow")
NO_ANSWER = 0  # the place of CLS
_CHUNK = 512  # questions tokenized at once: their offsets take far more memory than their rows

Span = tuple[int, int]  # first character, and the one after the last


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: the name of the question, unique in its data set.
        title: the name of its article. Questions of one article are held out together.
        context: the text that holds the answer.
        question: what is asked.
        answers: texts, each with its first character in the context. Empty where the context has no answer.
    """

    id: str
    title: str
    context: str
    question: str
    answers: tuple[tuple[str, int], ...]

    def span(self) -> Span | None:
        """The characters of the first answer that lies where it says, without blanks around it. None if none does."""
        for text, start in self.answers:
            if text.strip() and start >= 0 and self.context[start : start + len(text)] == text:
                begin = start + len(text) - len(text.lstrip())
                return begin, begin + len(text.strip())
        return None


@dataclass(frozen=True)
class Features:
    """The windows of questions to be answered.

    Attributes:
        rows: the rows of the windows.
        examples: the question of each window.
        offsets: for each token of each window its characters in the context. None for tokens outside the context.
    """

    rows: TokenizedSet
    examples: tuple[int, ...]
    offsets: tuple[tuple[Span | None, ...], ...]


def read(path: str, split: str) -> list[Question]:
    """The `train` or `validation` questions.

    Args:
        path: a SQuAD JSON file (version 1 or 2, and all of it, whatever the split) or JSON lines of flat records, a
            folder with train.json and validation.json or dev.json, `squad`, `squad_v2`, or another hub data set with
            such columns.
        split: `train` or `validation`.

    Raises:
        UserError: no such data, or a record that does not fit. The message names file and place.
    """
    source = find(path, split)
    return list(read_questions(source.records(), source.name))


def find(path: str, split: str) -> Source:
    """Where the records of a split are, see `read`."""
    return find_source(path, STEMS[split], ENDINGS, hub=(HUB_NAMES.get(path, path), split, ""))


def read_questions(records: Iterable[Located], name: str) -> Iterator[Question]:
    """The questions of records, one at a time."""
    places: dict[str, str] = {}
    for where, record in records:
        for place, question in _questions(record, where):
            if question.id in places:
                raise UserError(f"{place}: the id {question.id[:60]!r} is that of {places[question.id]} already")
            places[question.id] = place
            yield question
    if not places:
        raise UserError(f"{name} holds no questions. Give a source with at least one")


def _questions(record: Any, where: str) -> Iterator[tuple[str, Question]]:
    """Those of an article (paragraphs, each with its questions) or of a flat record, which is one."""
    if isinstance(record, dict) and "paragraphs" not in record and "context" in record:
        answers = record.get("answers")
        if isinstance(answers, dict):
            texts, starts = (_list(answers, column, where) for column in ("text", "answer_start"))
            if len(texts) != len(starts):
                raise UserError(f"{where}: {len(texts)} texts of answers, but {len(starts)} starts")
            answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        yield where, _question(record if answers is None else record | {"answers": answers}, record, record, where)
        return
    for i, paragraph in enumerate(_list(record, "paragraphs", where), start=1):
        for j, asked in enumerate(_list(paragraph, "qas", f"{where}, paragraph {i}"), start=1):
            place = f"{where}, paragraph {i}, question {j}"
            yield place, _question(asked, paragraph, record, place)


def _question(asked: Any, paragraph: Any, article: Any, where: str) -> Question:
    answers = []
    for number, answer in enumerate(_list(asked, "answers", where), start=1):
        place = f"{where}, answer {number}"
        start = value_of(answer, ("answer_start",), place)
        if not isinstance(start, int) or isinstance(start, bool):
            raise UserError(f"{place}: 'answer_start' must be a whole number, not {kind(start)}")
        answers.append((text_of(answer, ("text",), place), start))
    identity, title = text_of(asked, ("id",), where), text_of(article, ("title",), where) if "title" in article else ""
    context, question = text_of(paragraph, ("context",), where), text_of(asked, ("question",), where)
    for name, text in (("context", context), ("question", question)):
        if not text.strip():
            raise UserError(f"{where}: the {name} is empty. Fill it in or remove the question")
    return Question(identity, title, context, question, tuple(answers))


def _list(record: Any, column: str, where: str) -> list[Any]:
    value = value_of(record, (column,), where)
    if not isinstance(value, list):
        raise UserError(f"{where}: '{column}' must be a list, not {kind(value)}")
    return value


def split_by_article(
    questions: Sequence[Question], fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """Sets articles aside until they hold `fraction` of the questions: (train, held out), both in their order.

    Raises:
        UserError: there is but one article.
    """
    titles = sorted({question.title for question in questions})
    if len(titles) < 2:
        raise UserError("the questions are all of one article and cannot be split by article. Give --eval_data_path")
    held_out: set[str] = set()
    count = 0
    for i in np.random.default_rng(seed).permutation(len(titles))[:-1]:
        if held_out and count >= fraction * len(questions):
            break
        held_out.add(titles[i])
        count += sum(question.title == titles[i] for question in questions)
    train = [question for question in questions if question.title not in held_out]
    return train, [question for question in questions if question.title in held_out]


def encode(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int = 384, doc_stride: int = 128
) -> TokenizedSet:
    """Windows to train on, which overlap by `doc_stride` tokens.

    Questions whose answers all lie elsewhere than they say are left out, reported and counted in `dropped`.

    Args:
        questions: the questions.
        tokenizer: a tokenizer that gives character offsets.
        max_length: tokens of a window, at most.
        doc_stride: tokens that two windows share.

    Returns:
        Columns input_ids, token_type_ids where the tokenizer makes them, and targets: the answer's first and last
        token, or CLS twice in a window that does not hold the whole answer.

    Raises:
        UserError: no answer lies in its context, or a window leaves no room for the context.
    """
    usable = [question for question in questions if question.span() or not question.answers]
    dropped = len(questions) - len(usable)
    if not usable:
        raise UserError(f"none of the {dropped} answers lies in its context where it says. Give SQuAD's JSON")
    if dropped:
        first = next(question.id for question in questions if question.answers and not question.span())
        log.warning("left out %d questions whose answers lie outside their context, the first: %s", dropped, first)
    rows = [
        row | {"targets": _targets(usable[example].span(), offsets)}
        for example, row, offsets in _cut(usable, tokenizer, max_length, doc_stride)
    ]
    return TokenizedSet.of(rows, dropped)


def windows(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int = 384, doc_stride: int = 128
) -> Features:
    """The same windows for all questions, to be answered. Columns: input_ids, token_type_ids where there are."""
    examples, rows, offsets = zip(*_cut(questions, tokenizer, max_length, doc_stride), strict=True)
    return Features(TokenizedSet.of(rows), examples, offsets)


def _cut(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int
) -> Iterator[tuple[int, Row, tuple[Span | None, ...]]]:
    if not tokenizer.is_fast:
        raise UserError("the tokenizer gives no character offsets. Give a folder with tokenizer.json")
    check_room(tokenizer, True, max_length)
    framing = tokenizer.num_special_tokens_to_add(pair=True)
    asked = _shortened(questions, tokenizer, min(QUESTION_TOKENS, max_length // 2))
    longest = max(len(ids) for ids in tokenizer(asked, add_special_tokens=False)["input_ids"])
    if (room := max_length - framing - longest) <= doc_stride:
        raise UserError(
            f"windows of {max_length} tokens leave {room} for the context, which cannot overlap by {doc_stride}. "
            "Raise --max_seq_length or lower --doc_stride"
        )
    for start in range(0, len(questions), _CHUNK):
        part = questions[start : start + _CHUNK]
        encoded = tokenizer(
            asked[start : start + _CHUNK],
            [question.context for question in part],
            truncation="only_second",
            max_length=max_length,
            stride=doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for i, example in enumerate(encoded["overflow_to_sample_mapping"]):
            row = {name: encoded[name][i] for name in token_columns(tokenizer)}
            places = zip(encoded["offset_mapping"][i], encoded.sequence_ids(i), strict=True)
            yield start + example, row, tuple(span if text == 1 else None for span, text in places)


def _shortened(questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[str]:
    texts = [question.question.strip() for question in questions]
    offsets = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return [
        text[: spans[limit - 1][1]] if len(spans) > limit else text for text, spans in zip(texts, offsets, strict=True)
    ]


def _targets(span: Span | None, offsets: Sequence[Span | None]) -> list[int]:
    inside = [(i, place) for i, place in enumerate(offsets) if place is not None]
    if span is None or not inside or inside[0][1][0] > span[0] or inside[-1][1][1] < span[1]:
        return [NO_ANSWER, NO_ANSWER]
    met = [i for i, place in inside if place[1] > span[0] and place[0] < span[1]]
    return [met[0], met[-1]] if met else [NO_ANSWER, NO_ANSWER]
