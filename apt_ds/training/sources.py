"""The sets of a language model: one source or a mixture, of conversations or plain text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from apt_ds.config.run_config import RunConfig
from apt_ds.data.conversations import Example, example_source
from apt_ds.data.instructions import every_answer_cut, instruction_recipe
from apt_ds.data.kept import Kept, blocks_of, kept_tokens
from apt_ds.data.plain_text import TokenBlocks
from apt_ds.data.rows import Joined, Rows, split_rows
from apt_ds.data.source_kind import is_plain_text
from apt_ds.data.sources import WeightedSource, apportion, parse_sources
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.eval.task_evaluators import TaskEvaluator
from apt_ds.models.architectures import architecture_of
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives
from apt_ds.training.prepared_data import HELD_OUT, Part, cache_settings, prepared_on_node, split, whole


class Sets(NamedTuple):
    """What a reader returns.

    Attributes:
        train: the training set.
        held_out: the evaluation set.
        examples: the examples behind `held_out`.
        task_evaluator: measures the task's metrics. None if loss and perplexity say all.
    """

    train: Rows
    held_out: Rows
    examples: list[Any]
    task_evaluator: TaskEvaluator | None


class SourcePart(NamedTuple):
    """What is read of one source.

    Attributes:
        train: rows to train on.
        held_out: rows that are held out. None: none are.
        examples: returns the conversations behind `held_out`, or behind `train` if nothing is held out.
    """

    train: Rows
    held_out: Rows | None
    examples: Callable[[], list[Any]]


class SourceReader:
    """Reads the sources that options name. All its methods are collective."""

    def __init__(self, run: RunConfig, base: Base, now: datetime) -> None:
        """Prepare to read.

        Args:
            run: the options.
            base: its tokenizer makes the rows.
            now: the time that chat templates write.
        """
        self.run, self.base, self.now = run, base, now
        self.recipe = instruction_recipe(base.tokenizer, run.data.max_seq_length, now)

    def sets(self) -> Sets:
        """Training and evaluation sets by --data_path, --eval_data_path and --eval_size."""
        data = self.run.data
        sources = parse_sources(data.data_path, "--data_path")
        if data.eval_data_path:
            train = [self.part(source.name, "--data_path") for source in sources]
            parts, examples = self._evaluation()
        else:
            counts = self._apportioned(data.eval_size or HELD_OUT, sources)
            train = [self.part(s.name, "--data_path", held_out=n) for s, n in zip(sources, counts, strict=True)]
            parts = [part.held_out for part in train if part.held_out is not None]
            # a source whose share is 0 has set none aside
            examples = [example for part in train if part.held_out is not None for example in part.examples()]
        return Sets(joined([part.train for part in train], sources), joined(parts), examples, None)

    def evaluation(self) -> tuple[Rows, list[Any]]:
        """The rows of --eval_data_path, and the examples behind them."""
        parts, examples = self._evaluation()
        return joined(parts), examples

    def _evaluation(self) -> tuple[list[Rows], list[Any]]:
        sources = parse_sources(self.run.data.eval_data_path, "--eval_data_path")
        most = self._apportioned(self.run.data.eval_size, sources)
        taken = [(s.name, n) for s, n in zip(sources, most, strict=True) if n or not self.run.data.eval_size]
        parts = [self.part(name, "--eval_data_path", most=n) for name, n in taken]
        return [part.train for part in parts], [example for part in parts for example in part.examples()]

    def whole(self, path: str, flag: str) -> Rows:
        """All rows of the sources of an option."""
        sources = parse_sources(path, flag)
        return joined([self.part(source.name, flag).train for source in sources], sources)

    def part(self, name: str, flag: str, held_out: int = 0, most: int = 0) -> SourcePart:
        """Read one source.

        Args:
            name: the source.
            flag: the option that names it.
            held_out: examples or blocks of text to set aside.
            most: examples or blocks of text to keep. 0: all.
        """
        if not collectives.on_main(lambda: is_plain_text(name)):
            return self._conversations(name, held_out, most)
        blocks: Rows = self._blocks(name, flag)
        if most and most < len(blocks):
            blocks = split_rows(blocks, most, self.run.optim.seed, name)[1]
        total = self.run.data.eval_size or HELD_OUT
        train, aside = split_rows(blocks, held_out, self.run.optim.seed, name, total)
        return SourcePart(train, aside if held_out else None, list)

    def _conversations(self, name: str, held_out: int, most: int) -> SourcePart:
        """Conversations of one source. Arguments are those of `part`."""
        data = prepared_on_node(self.run, lambda: example_source(name), self.recipe)
        if not held_out:
            part = whole(data, most)
            return SourcePart(self._tokenized(part), None, part.examples)
        train, aside = split(self.run, data, held_out)
        return SourcePart(self._tokenized(train), self._tokenized(aside), aside.examples)

    def _tokenized(self, part: Part[Example]) -> TokenizedSet:
        """The rows of conversations. Raises UserError if none has an answer within the maximum length."""
        rows = part.tokenized()
        if not len(rows):
            raise every_answer_cut(part.examples(), self.base.tokenizer, self.run.data.max_seq_length, self.now)
        return rows

    def _blocks(self, name: str, flag: str) -> TokenBlocks:
        """Plain text, tokenized by the first rank of every node into a file that all its ranks map into memory.

        The file is in the cache unless the text is small.
        """
        tokenizer, length = self.base.tokenizer, self.run.data.max_seq_length
        begins = architecture_of(self.base.config).begins_with_bos
        bos_id = tokenizer.bos_token_id if begins else None

        def make() -> bytes:
            tokens = kept_tokens(name, flag, tokenizer, cache_settings(self.run))
            try:
                fingerprint = blocks_of(tokens.folder, length, bos_id).fingerprint
            except BaseException:
                tokens.remove_temporary()
                raise
            return json.dumps([str(tokens.folder), tokens.temporary, fingerprint]).encode()

        folder, temporary, fingerprint = json.loads(collectives.from_node(make))
        tokens = Kept(Path(folder), temporary)
        blocks = blocks_of(tokens.folder, length, bos_id, fingerprint)
        collectives.barrier()
        if collectives.local_rank() == 0:
            # what is mapped stays readable, and goes with the last process
            tokens.remove_temporary()
        return blocks

    def _apportioned(self, total: int, sources: Sequence[WeightedSource]) -> list[int]:
        """`total` by the weights of the sources. Sources without weights have equal parts."""
        return apportion(total, [source.weight or 1.0 for source in sources])


def joined(parts: Sequence[Rows], sources: Sequence[WeightedSource] = ()) -> Rows:
    """The rows of all parts. A single part stays what it is."""
    if len(parts) == 1:
        return parts[0]
    return Joined(parts, json.dumps([source.weight for source in sources]))
