"""The sets of a run that answers questions: SQuAD's rows, which are made once and kept in the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from apt_ds.config.run_config import RunConfig
from apt_ds.data import squad
from apt_ds.data.kept import Kept, kept_rows, opened_rows
from apt_ds.data.prepared import SMALL_BYTES
from apt_ds.data.readers import Source
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.data.tokenizer_identity import tokenizer_identity
from apt_ds.eval.task_evaluators import SpanEvaluator
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives
from apt_ds.training.prepared_data import cache_settings
from apt_ds.training.sources import Sets

HELD_ARTICLES = 0.2  # fraction of the questions to hold out, by whole articles
IN_MEMORY = b"rows "  # before the rows of a small source, which other ranks read at once


def read_spans(run: RunConfig, base: Base, _: datetime) -> Sets:
    """SQuAD. A single file is split by articles, so that training shares no context with evaluation. Collective."""
    path, limit = run.data.data_path, run.data.eval_size or None
    if not run.data.eval_data_path and os.path.isfile(path):
        source = squad.find(path, "train")
        train, held_out = squad.split_by_article(questions_of(source), HELD_ARTICLES, run.optim.seed)
        split = [HELD_ARTICLES, run.optim.seed]
        train_set = question_rows(run, base, source, ["train", *split], lambda: train)
    else:
        source, split = squad.find(run.data.eval_data_path or path, "validation"), []
        held_out, train_source = questions_of(source), squad.find(path, "train")
        # the questions are read where the cache has no rows of them
        train_set = question_rows(run, base, train_source, ["train"], lambda: questions_of(train_source))
    held_out = held_out[:limit]
    held_out_set = question_rows(run, base, source, ["held out", *split, limit], lambda: held_out)
    windows = squad.windows(held_out, base.tokenizer, run.data.max_seq_length, run.data.doc_stride)
    return Sets(train_set, held_out_set, held_out, SpanEvaluator(held_out, windows))


def questions_of(source: Source) -> list[squad.Question]:
    """All questions of a source. Raises UserError."""
    return list(squad.read_questions(source.records(), source.name))


def question_rows(
    run: RunConfig, base: Base, source: Source, part: list[Any], questions: Callable[[], Sequence[squad.Question]]
) -> TokenizedSet:
    """Rows of questions, tokenized by the first rank of every node, and kept in the cache unless the source is small.

    Args:
        run: the options.
        base: its tokenizer makes the rows.
        source: where the questions are.
        part: which of the source's questions they are, as JSON can write it.
        questions: reads them, where the cache has no rows of them.
    """
    lengths = run.data.max_seq_length, run.data.doc_stride

    def encode() -> TokenizedSet:
        return squad.encode(questions(), base.tokenizer, *lengths)

    def make() -> bytes:
        if 0 < source.bytes() <= SMALL_BYTES:
            return IN_MEMORY + encode().to_bytes()
        facts = ["squad", source.identity(), part, tokenizer_identity(base.tokenizer), lengths]
        kept = kept_rows(facts, cache_settings(run), encode)
        return json.dumps([str(kept.folder), kept.temporary]).encode()

    content = collectives.from_node(make)
    in_memory = content.startswith(IN_MEMORY)
    place, temporary = ("", False) if in_memory else json.loads(content)
    rows = TokenizedSet.from_bytes(content.removeprefix(IN_MEMORY)) if in_memory else opened_rows(Path(place))
    # on every node: one may have files where another has the same rows in memory
    collectives.barrier()
    if collectives.local_rank() == 0:
        Kept(Path(place), temporary).remove_temporary()
    return rows
