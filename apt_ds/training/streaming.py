"""Training data that is read while training: its sources, the examples held out of it, and each process's rows."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data.instructions import instruction_recipe
from apt_ds.data.mixture_order import counts_in, shares_of
from apt_ds.data.sources import WeightedSource, apportion
from apt_ds.data.stream_encoders import ArrayRow, ConversationEncoder, Encoder, TextEncoder
from apt_ds.data.stream_part import Retries, Start
from apt_ds.data.stream_rows import EncodedPart, MixedRows, ShuffledRows
from apt_ds.data.stream_source import StreamSource, stream_source
from apt_ds.data.tokenized import Row, TokenizedSet
from apt_ds.models.architectures import architecture_of
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives, heartbeat, notices
from apt_ds.training.data_figures import SourceFigures
from apt_ds.training.prepared_data import HELD_OUT

FIRST = 4  # rows of each source that its fingerprint covers


class Stream:
    """The training data of a run with --streaming. Every process reads a part of it.

    Attributes:
        sources: where rows come from.
        weights: those of the sources, above 0.
        starts: where the records of each source begin, after those held out.
        fingerprint: hash of all that decides the rows, as far as it is known before they are read.
    """

    def __init__(self, run: RunConfig, base: Base, now: datetime, sources: Sequence[WeightedSource]) -> None:
        """Find the sources and read their first records. Raises UserError."""
        self.run_config, self.base, self.now = run, base, now
        self.retries = Retries(waiting=heartbeat.progress, tell=notices.warn)
        self.weights = tuple(source.weight or 1.0 for source in sources)
        self.sources = [stream_source(source.name, self.retries) for source in sources]
        self.starts = [Start() for _ in sources]
        self.fingerprint = ""
        self._warned: dict[str, set[str]] = {}

    @property
    def max_length(self) -> int:
        """Tokens that no row exceeds."""
        return self.run_config.data.max_seq_length

    def open(self) -> MixedRows:
        """The rows of this process from the first one on. Reads nothing yet."""
        rank, world, data = collectives.rank(), collectives.world_size(), self.run_config.data
        # a tokenizer serves one thread at a time
        tokenizer = copy.deepcopy(self.base.tokenizer) if data.dataloader_num_workers else self.base.tokenizer
        sources = []
        for number, (source, start) in enumerate(zip(self.sources, self.starts, strict=True)):
            part = EncodedPart(source.part(rank, world, start, self.retries), self._encoder(source, tokenizer))
            seed = [self.run_config.optim.seed, number, rank]
            sources.append(ShuffledRows(part, data.shuffle_buffer_size, seed))
        return MixedRows(sources, self.weights)

    def _encoder(self, source: StreamSource, tokenizer: Any) -> Encoder:
        length, warned = self.max_length, self._warned.setdefault(source.name, set())
        if not source.plain_text:
            return ConversationEncoder(source.name, instruction_recipe(tokenizer, length, self.now), warned)
        begins = architecture_of(self.base.config).begins_with_bos
        return TextEncoder(source.name, tokenizer, length, tokenizer.bos_token_id if begins else None, warned)

    def hold_out(self, total: int) -> tuple[list[Row], list[Any]]:
        """Set the first examples of each source aside, `total` in all. Training begins after them.

        Returns:
            Their rows, and the conversations among the examples.

        Raises:
            UserError: a source has too few.
        """
        rows: list[Row] = []
        examples: list[Any] = []
        for number, count in enumerate(apportion(total, list(self.weights))):
            more, behind, self.starts[number] = self._first(self.sources[number], count)
            rows += more
            examples += behind
        return rows, examples

    def _first(self, source: StreamSource, count: int) -> tuple[list[Row], list[Any], Start]:
        """The rows and examples of the first records with `count` rows, and where the next record is."""
        part, encoder = source.part(retries=self.retries), self._encoder(source, self.base.tokenizer)
        rows: list[Row] = []
        examples: list[Any] = []
        while len(rows) < count:
            records = part.read(1)
            if not records:
                encoder.end_pass()
                whole = self.run_config.data.eval_size or HELD_OUT
                share = "" if whole == count else f", its share of {whole}"
                raise UserError(
                    f"--eval_size: cannot hold out {count} examples of {source.name}{share}: it has "
                    f"{len(rows)}; give less, or --eval_data_path"
                )
            encoded = encoder.encode(records)
            if encoded and isinstance(encoder, ConversationEncoder):
                examples += encoder.examples(records)
            rows += as_rows(encoded[: count - len(rows)])
        return rows, examples, part.next_place()

    def take_fingerprint(self) -> None:
        """Read the first rows to train on, and compute `fingerprint`."""
        run = self.run_config
        facts: list[Any] = [run.optim.seed, run.data.shuffle_buffer_size, self.max_length, list(self.weights)]
        for source, start in zip(self.sources, self.starts, strict=True):
            part = EncodedPart(
                source.part(start=start, retries=self.retries), self._encoder(source, self.base.tokenizer)
            )
            rows = as_rows(part.read(FIRST))
            facts += [source.plain_text, source.identity, [start.shard, start.number], rows]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def figures(self, sources: Sequence[WeightedSource], places: int) -> list[SourceFigures]:
        """Each source, with the number of examples that the first `places` places of all processes take from it."""
        weights = shares_of(self.weights)
        world = collectives.world_size()
        seen = [world * count for count in counts_in(self.weights, places // world)]
        return [
            {"name": source.name, "weight": weight, "rows": 0, "seen": count}
            for source, weight, count in zip(sources, weights, seen, strict=True)
        ]


@dataclass(frozen=True)
class StreamOrder:
    """The rows of a stream, numbered as steps take them.

    Attributes:
        n: rows of all steps.
        global_batch: rows of one step.
    """

    n: int
    global_batch: int

    def indices(self, step: int) -> list[int]:
        """The numbers of the rows of a step."""
        return list(range(step * self.global_batch, (step + 1) * self.global_batch))

    def steps(self, epochs: float) -> int:
        """The steps that take `epochs` times as many rows."""
        return round(epochs * self.n / self.global_batch)


def open_stream(
    run: RunConfig, base: Base, now: datetime, sources: Sequence[WeightedSource]
) -> tuple[Stream, TokenizedSet, list[Any]]:
    """Find the sources of a stream, and set examples aside unless there is --eval_data_path. Collective.

    Returns:
        The stream, and rows and examples that are held out: none with --eval_data_path.

    Raises:
        UserError: several sources without weights, or one that cannot be read.
    """
    if len(sources) > 1 and sources[0].weight is None:
        raise UserError(
            "--streaming requires weights for several sources, as their sizes are unknown: give "
            f"--data_path {sources[0].name}:0.5,{sources[1].name}:0.5"
        )

    def read() -> tuple[Stream, list[Row], list[Any]]:
        stream = Stream(run, base, now, sources)
        held_out: tuple[list[Row], list[Any]] = ([], [])
        if not run.data.eval_data_path:
            held_out = stream.hold_out(run.data.eval_size or HELD_OUT)
        stream.take_fingerprint()
        return stream, *held_out

    stream, rows, examples = collectives.on_each_rank(read)
    return stream, TokenizedSet.of(rows), examples


def as_rows(rows: Sequence[ArrayRow]) -> list[Row]:
    """Rows as lists of numbers."""
    return [{name: values.tolist() for name, values in row.items()} for row in rows]
