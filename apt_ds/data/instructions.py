"""From examples to token rows: the text (`prompts.py`), and the mask over its prompts.

Only what the assistant says is trained, its end-of-turn token included. Text is tokenized up to the start of each
answer exactly as it will be when generating: a token never spans the end of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import Example, read_examples
from apt_ds.data.prompts import prompt_ids, segments_of
from apt_ds.data.recipe import Recipe
from apt_ds.data.segments import SegmentTokenizer
from apt_ds.data.special_tokens import leading_ids
from apt_ds.data.tokenized import IGNORED, Row, TokenizedSet
from apt_ds.data.tokenizer_identity import tokenizer_identity, written_times

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_dataset(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None
) -> TokenizedSet:
    """Encodes all examples. UserError when max_length (tokens) leaves nothing of any answer.

    now: the time that a chat template writes. None takes this host's clock for each example.
    """
    encoded = encode_many(examples, tokenizer, max_length, now)
    rows = tuple(row for row in encoded if is_trained(row))
    if not rows:
        raise every_answer_cut(examples, tokenizer, max_length, now)
    return TokenizedSet.of(rows, len(encoded) - len(rows))


def is_trained(row: Row) -> bool:
    """Whether any token of a row is trained."""
    # a label in first place has no token before it to be predicted from. Most rows end with a trained token
    labels = row["labels"]
    return len(labels) > 1 and (labels[-1] != IGNORED or any(label != IGNORED for label in labels[1:]))


def every_answer_cut(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None
) -> UserError:
    """The error of a length that leaves nothing of any answer."""
    shortest = min(len(prompt_ids(example, tokenizer, now)) for example in examples)
    reason = f"the shortest prompt alone takes {shortest} tokens"
    return UserError(f"--max_seq_length {max_length} cuts off every answer ({reason}). Raise it")


def instruction_recipe(
    tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None
) -> Recipe[Example]:
    """How conversations become rows: see `encode_many`."""
    options = {
        "task": "instructions",
        "tokenizer": tokenizer_identity(tokenizer),
        "times": written_times(tokenizer, now),
        "max_length": max_length,
    }
    encoder = InstructionEncoder(tokenizer, max_length, now)
    return Recipe(read_examples, encoder, dump_example, load_example, options, is_trained)


def dump_example(example: Example) -> tuple[Any, str]:
    """An example as JSON can write it, and its place. A plain instruction record is three texts."""
    if _is_record(example):
        return [example.instruction, example.input, example.output], example.where
    texts = [example.messages, example.instruction, example.input, example.tools]
    return [*texts, sorted(example.untrained), example.unfinished], example.where


def _is_record(example: Example) -> bool:
    """Whether instruction, input and answer say everything of an example."""
    if not example.instruction or example.tools or example.untrained or example.unfinished:
        return False
    return example.messages == Example.from_instruction(example.instruction, example.input, example.output).messages


def load_example(parts: Any, where: str) -> Example:
    """The example of what `dump_example` gave."""
    if len(parts) == 3:
        return Example.from_instruction(*parts, where=where)
    messages, instruction, input, tools, untrained, unfinished = parts
    return Example(tuple(messages), instruction, input, tuple(tools), frozenset(untrained), where, unfinished)


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None) -> Row:
    """Token ids and labels of one example, see `encode_many`."""
    return encode_many([example], tokenizer, max_length, now)[0]


def encode_many(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None
) -> list[Row]:
    """Token ids and labels of examples, both of the same length, at most `max_length`.

    Cut from the right. When the answer lies wholly beyond the cut every label is -100. Answers of
    `Example.untrained` have labels of -100 too. No end of turn follows the last answer of `Example.unfinished`.
    """
    return InstructionEncoder(tokenizer, max_length, now)(examples)


class InstructionEncoder:
    """Makes rows of examples. Keep it for many calls: it remembers what the tokenizer makes of common texts.

    now: the time that a chat template writes. None takes this host's clock for each example.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None) -> None:
        self.tokenizer, self.max_length, self.now = tokenizer, max_length, now
        self.tokenize = SegmentTokenizer(tokenizer, leading_ids(tokenizer))

    def __call__(self, examples: Sequence[Example]) -> list[Row]:
        """The rows of some examples."""
        pieces = []
        for example in examples:
            segments = segments_of(example, self.tokenizer, self.now)
            pieces.append([(text, answer is not None and answer not in example.untrained) for text, answer in segments])
        return [
            {"input_ids": ids[: self.max_length], "labels": labels[: self.max_length]}
            for ids, labels in self.tokenize(pieces)
        ]
