"""Text from text, for sequence-to-sequence models: summaries, GLUE in T5's own words, or anything given as pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from apt_ds.config.errors import UserError
from apt_ds.data import glue
from apt_ds.data.glue import GLUE
from apt_ds.data.readers import Located, Source, find_source, leave_out, text_of
from apt_ds.data.recipe import Recipe
from apt_ds.data.tokenized import Row, TokenizedSet
from apt_ds.data.tokenizer_identity import tokenizer_identity

SUMMARIES = "cnndm"
PREFIXES = {SUMMARIES: "summarize: ", "text": ""}  # what a source begins with. `text` takes sources as they are
HUB = {"cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0")}
COLUMNS = (("article", "highlights"), ("document", "summary"), ("source", "target"), ("input", "output"))
STEMS = {"train": ("train",), "validation": ("validation", "dev")}
T5 = "t5-"  # before the name of a task of GLUE
SCORE_STEP = 0.2  # T5 writes the scores of STS-B in steps of it
NO_LABEL = -1  # what a text that is no label counts as


class Exchange(NamedTuple):
    """What a model reads, what it should write, and the place of the record."""

    source: str
    target: str
    where: str


def tasks() -> tuple[str, ...]:
    """The names `read` knows."""
    return (*PREFIXES, *(T5 + task for task in GLUE))


def read(task: str, path: str, split: str) -> list[Exchange]:
    """The `train` or `validation` split of `cnndm`, of `text`, or of a task of GLUE in T5's words (`t5-sst2`).

    Args:
        task: the name of the task.
        path: a file (all of it, whatever the split), a folder with train.* and validation.* or dev.*, `cnn_dailymail`,
            or the name of another hub data set. Its records have one of `COLUMNS`. For GLUE as in `glue.read`.
        split: `train` or `validation`.

    Raises:
        UserError: an unknown task, no such data, or a record that does not fit. The message names file and line.
    """
    source = find(task, path, split)
    return list(read_exchanges(task, source.records(), source.name))


def find(task: str, path: str, split: str) -> Source:
    """Where the records of a split are, see `read`."""
    if task not in tasks():
        raise UserError(f"unknown task {task!r}. Give one of {', '.join(tasks())}")
    if task.startswith(T5):
        return glue.find(task.removeprefix(T5), path, split)
    name, config = HUB.get(path, (path, ""))
    return find_source(path, STEMS[split], hub=(name, split, config))


def read_exchanges(task: str, records: Iterable[Located], name: str) -> Iterator[Exchange]:
    """The exchanges of records, one at a time. After the last one it warns of what is left out."""
    if task.startswith(T5):
        task = task.removeprefix(T5)
        yield from (prompt(task, pair) for pair in glue.read_pairs(task, records, name))
        return
    blank: list[str] = []
    count = 0
    for record in records:
        one = _exchange(record, PREFIXES[task])
        count += 1
        if _whole(one, PREFIXES[task]):
            yield one
        else:
            blank.append(one.where)
    leave_out(blank, count, "the source or the target is empty", name)
    if len(blank) == count:
        raise UserError(f"{name} holds no records. Give a source with at least one")


def _exchange(located: Located, prefix: str) -> Exchange:
    where, record = located
    given = record if isinstance(record, dict) else {}
    columns = next((pair for pair in COLUMNS if pair[0] in given and pair[1] in given), None)
    if columns is None and given:
        wanted = ", ".join(" and ".join(pair) for pair in COLUMNS)
        raise UserError(f"{where}: no two columns to learn from (it has: {', '.join(given)[:200]}). Give {wanted}")
    source, target = (text_of(record, (column,), where) for column in columns or COLUMNS[0])
    return Exchange(prefix + source, target, where)


def _whole(one: Exchange, prefix: str) -> bool:
    return bool(one.source.removeprefix(prefix).strip() and one.target.strip())


def prompt(task: str, pair: glue.Pair) -> Exchange:
    """A record of GLUE as T5 was trained on it, texts by name: `mnli hypothesis: ... premise: ...`."""
    named = sorted(zip((names[0] for names in GLUE[task].texts), pair[:2], strict=False))
    source = " ".join([task, *(f"{name}: {text}" for name, text in named)])
    return Exchange(source, label_word(task, pair.label), pair.where)


def label_word(task: str, label: int | float) -> str:
    """What T5 writes for a label: its name, or the score in steps of 0.2."""
    labels = GLUE[task].labels
    return f"{round(label / SCORE_STEP) * SCORE_STEP:.1f}" if labels is None else labels[int(label)]


def predicted(task: str, text: str) -> int | float:
    """The label of a task of GLUE that a generated text says. NO_LABEL where it says none."""
    labels, answer = GLUE[task].labels, text.strip()
    if labels is not None:
        return labels.index(answer) if answer in labels else NO_LABEL
    try:
        score = float(answer)
    except ValueError:
        return NO_LABEL
    return score if 0 <= score <= glue.HIGHEST_SCORE else NO_LABEL


def encode(
    exchanges: Sequence[Exchange], tokenizer: PreTrainedTokenizerBase, max_source: int, max_target: int
) -> TokenizedSet:
    """Rows of input_ids, at most `max_source`, and labels, at most `max_target`. Both are cut on the right, then ended.

    Raises:
        UserError: a length leaves no room, or the tokenizer has no end token.
    """
    return TokenizedSet.of(ExchangeEncoder(tokenizer, max_source, max_target)(exchanges))


class ExchangeEncoder:
    """Makes the rows of `encode`. Raises UserError as it does."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_source: int, max_target: int) -> None:
        for length in (max_source, max_target):
            if length < 2:
                raise UserError(f"a length of {length} tokens leaves no room beside the end token. Raise it")
        if tokenizer.eos_token_id is None:
            name = tokenizer.name_or_path or "the model"
            raise UserError(f"the tokenizer of {name} has no eos_token to end a text with")
        self.tokenizer, self.max_source, self.max_target = tokenizer, max_source, max_target

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Row]:
        """The rows of some exchanges."""
        sources = self._ended([one.source for one in exchanges], self.max_source)
        targets = self._ended([one.target for one in exchanges], self.max_target)
        return [{"input_ids": source, "labels": target} for source, target in zip(sources, targets, strict=True)]

    def _ended(self, texts: list[str], limit: int) -> list[list[int]]:
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [[*ids[: limit - 1], self.tokenizer.eos_token_id] for ids in encoded]


def recipe(task: str, tokenizer: PreTrainedTokenizerBase, max_source: int, max_target: int) -> Recipe[Exchange]:
    """How the records of a task become rows, see `encode`."""
    options = {"task": task, "tokenizer": tokenizer_identity(tokenizer), "lengths": [max_source, max_target]}
    encoder = ExchangeEncoder(tokenizer, max_source, max_target)
    return Recipe(partial(read_exchanges, task), encoder, lambda one: (one[:2], one.where), _load_exchange, options)


def _load_exchange(parts: list[str], where: str) -> Exchange:
    source, target = parts
    return Exchange(source, target, where)
