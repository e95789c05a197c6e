"""How the records of a stream become rows, a batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import EMPTY, UNTRAINED, Example, parse_record, warn_unused
from apt_ds.data.formats import Located
from apt_ds.data.plain_text import check_end_token, encode_pieces, pieces_of
from apt_ds.data.recipe import Recipe
from apt_ds.data.source_kind import LAST_PIECE, TEXT
from apt_ds.data.turns import Unused
from apt_ds.data.values import TOLERANCE, leave_out, log, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ArrayRow = dict[str, np.ndarray]  # int32 values by column
State = dict[str, Any]

_ENOUGH = 1000  # records after which a share of broken ones says something


class Encoder(ABC):
    """Makes rows of records. What it counts and carries on is its state."""

    @abstractmethod
    def encode(self, records: Sequence[Located]) -> list[ArrayRow]:
        """The rows of some records.

        Raises:
            UserError: a record cannot be used.
        """

    @abstractmethod
    def end_pass(self) -> None:
        """The stream begins again. Raises UserError where its records gave nothing."""

    @property
    @abstractmethod
    def dropped(self) -> int:
        """Examples that gave no row, as nothing of them would be trained."""

    @abstractmethod
    def state(self) -> State:
        """What the next rows depend on, and counts."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Take over a state."""


class ConversationEncoder(Encoder):
    """Conversations, one row each. Rows of which nothing is trained are left out.

    Attributes:
        counts: records `read`, those with an `empty` answer or `untrained`, rows that the length `cuts` whole.
    """

    def __init__(self, name: str, recipe: Recipe[Example], warned: set[str] | None = None) -> None:
        """Make rows by a recipe. name: the source, for messages. warned: what was warned of, of all its encoders."""
        self.name, self.recipe = name, recipe
        self.counts = {"read": 0, "empty": 0, "untrained": 0, "cut": 0}
        self.first = {"empty": "", "untrained": ""}
        self._unused = Unused()
        self._warned = set[str]() if warned is None else warned

    def encode(self, records: Sequence[Located]) -> list[ArrayRow]:
        """The rows of some records."""
        examples = self.examples(records)
        warn_once(self._unused, self.name, self._warned)
        rows = [row for row in self.recipe.encode(examples) if self._trained(row)]
        if self.counts["read"] >= _ENOUGH:
            self._check()
        return [{name: np.array(values, np.int32) for name, values in row.items()} for row in rows]

    def examples(self, records: Sequence[Located]) -> list[Example]:
        """The examples of records that can be trained on."""
        examples = []
        for where, record in records:
            self.counts["read"] += 1
            example = parse_record(record, where, self._unused)
            if not example.is_trained():
                self._leave_out("untrained", where)
            elif empty := example.empty_answer():
                self._leave_out("empty", empty)
            else:
                examples.append(example)
        return examples

    def end_pass(self) -> None:
        """Check what was left out, and whether anything is left."""
        self._check()
        if self.counts["read"] == self.counts["empty"] + self.counts["untrained"] + self.counts["cut"]:
            raise UserError(f"{self.name}: --max_seq_length cuts off every answer. Raise it")

    def state(self) -> State:
        """Counts, and the first place of what was left out."""
        return {"counts": dict(self.counts), "first": dict(self.first)}

    def load(self, state: State) -> None:
        """Take over `state`."""
        self.counts, self.first = dict(state["counts"]), dict(state["first"])

    @property
    def dropped(self) -> int:
        """Examples that gave no row."""
        return self.counts["cut"]

    def _trained(self, row: Any) -> bool:
        trained = self.recipe.is_trained(row)
        self.counts["cut"] += not trained
        return trained

    def _leave_out(self, why: str, where: str) -> None:
        self.counts[why] += 1
        self.first[why] = self.first[why] or where

    def _check(self) -> None:
        """Warn once of records that were left out. Raises UserError where they are not few."""
        for why, problem in (("empty", EMPTY), ("untrained", UNTRAINED)):
            count, total = self.counts[why], self.counts["read"]
            if count > TOLERANCE * total:
                leave_out([self.first[why]] * count, total, problem, self.name)
            if count and why not in self._warned:
                log.warning("%s: left out %d records so far. %s: %s", self.name, count, self.first[why], problem)
                self._warned.add(why)


class TextEncoder(Encoder):
    """Plain text, cut into blocks of which every token is trained. A block may end one text and begin the next."""

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        bos_id: int | None,
        warned: set[str] | None = None,
    ) -> None:
        """Make blocks.

        Args:
            name: the source, for messages.
            tokenizer: makes the tokens.
            length: tokens of a block, `bos_id` included where there is one.
            bos_id: the token that begins each block.
            warned: what was warned of, of all encoders of the source.
        """
        check_end_token(tokenizer)
        self._unused = Unused()
        self._warned = set[str]() if warned is None else warned
        self.name, self.tokenizer, self.bos_id = name, tokenizer, bos_id
        self.text_tokens = length - (bos_id is not None)
        self.rest = np.zeros(0, np.int32)
        self.blocks = 0

    def encode(self, records: Sequence[Located]) -> list[ArrayRow]:
        """The blocks that records of a column `text` fill. A record is a whole text, or a piece of a text file."""
        pieces: list[tuple[str, bool]] = []
        for where, record in records:
            text = text_of(record, (TEXT,), where)
            self._unused.note(record, (TEXT, LAST_PIECE), where)
            if text.strip():
                own = list(pieces_of([text]))
                pieces += [(piece, i + 1 == len(own) and record.get(LAST_PIECE, True)) for i, piece in enumerate(own)]
        warn_once(self._unused, self.name, self._warned)
        tokens = np.concatenate([self.rest, *encode_pieces(pieces, self.tokenizer)])
        count = len(tokens) // self.text_tokens
        self.rest, self.blocks = tokens[count * self.text_tokens :], self.blocks + count
        return [self._block(block) for block in tokens[: count * self.text_tokens].reshape(count, self.text_tokens)]

    @property
    def dropped(self) -> int:
        """0. Documents without text are no examples."""
        return 0

    def _block(self, tokens: np.ndarray) -> ArrayRow:
        ids = tokens if self.bos_id is None else np.concatenate([[self.bos_id], tokens]).astype(np.int32)
        return {"input_ids": ids, "labels": ids}

    def end_pass(self) -> None:
        """Check that there was a block."""
        if not self.blocks:
            raise UserError(
                f"{self.name}: the part of a process has fewer than {self.text_tokens} tokens, those of a block. Give "
                "more text, or a smaller --max_seq_length"
            )

    def state(self) -> State:
        """The tokens that wait for the next text, and whether there was a block."""
        return {"rest": self.rest.tolist(), "blocks": self.blocks}

    def load(self, state: State) -> None:
        """Take over `state`."""
        self.rest, self.blocks = np.array(state["rest"], np.int32), state["blocks"]


def warn_once(unused: Unused, name: str, warned: set[str]) -> None:
    """Warn of the columns of a source that reading does not use, unless `warned` says that this was done."""
    if unused.first and "unused" not in warned:
        warn_unused(unused, name)
        warned.add("unused")
