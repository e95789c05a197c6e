"""What a run is fed: its training and held-out sets, the order of samples, the corpus it is judged on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL, TEXTS
from apt_ds.data import glue, seq2seq, squad
from apt_ds.data.batching import GlobalOrder
from apt_ds.data.conversations import load_examples
from apt_ds.data.instructions import build_dataset, split_held_out
from apt_ds.data.text import read_plain
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.eval.corpus_perplexity import token_blocks
from apt_ds.eval.task_evaluators import ClassEvaluator, SpanEvaluator, TaskEvaluator, TextEvaluator
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives

HELD_OUT = 100  # training examples, where nothing is said about evaluation
HELD_ARTICLES = 0.2  # of the questions, article by article


@dataclass
class Data:
    """Training and held-out sets, the order of samples, and the corpus perplexity is taken on (or None).

    now: the time that chat templates write, on all ranks and after every resume.
    """

    train: TokenizedSet
    held_out: TokenizedSet
    held_out_examples: list[Any]
    order: GlobalOrder
    total_steps: int
    corpus: torch.Tensor | None
    task_evaluator: TaskEvaluator | None = None
    now: datetime | None = None

    def counts(self) -> dict[str, int]:
        """What a resumed run must have in common besides options (see `checkpoint.COUNTS`)."""
        return {"global_batch": self.order.global_batch, "total_steps": self.total_steps}

    def longest(self) -> int:
        """Tokens of the longest example."""
        return max((len(row["input_ids"]) for part in (self.train, self.held_out) for row in part.rows), default=0)

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of what is read."""
        corpus = "" if self.corpus is None else collectives.digest(self.corpus)
        return {"train": self.train.fingerprint, "held_out": self.held_out.fingerprint, "corpus": corpus}

    def describe(self) -> dict[str, int]:
        """Sizes, for the report."""
        sizes = {"train": len(self.train), "held_out": len(self.held_out), "dropped": self.train.dropped}
        return sizes | {"steps": self.total_steps}


def read_data(run: RunConfig, base: Base, now: datetime | None = None) -> Data:
    """Read and split on every rank; tokenize once on every node. Collective.

    now: the time that chat templates write; None takes rank 0's clock for all ranks.
    """
    now = now or collectives.on_main(datetime.now)
    if not collectives.is_main():
        # rank 0 has warned of the same files
        logging.getLogger("apt_ds.data").setLevel(logging.ERROR)
    sets = READERS[base.kind](run, base, now)
    batch = run.optim.global_batch(collectives.world_size())
    order = GlobalOrder(len(sets.train), batch, run.optim.seed)
    steps = run.optim.max_steps if run.optim.max_steps > 0 else order.steps(run.optim.num_train_epochs)
    corpus = None
    if run.data.perplexity_path:
        flag, path = "--perplexity_path", run.data.perplexity_path
        text, source = read_plain(Path(path), flag), f"{flag} {path!r}"
        length, limit = run.data.perplexity_length, run.data.perplexity_blocks
        corpus = token_blocks(text, base.tokenizer, length, source=source, limit=limit)
    return Data(sets.train, sets.held_out, sets.examples, order, steps, corpus, sets.task_evaluator, now)


class Sets(NamedTuple):
    """What a kind of task reads: tokenized sets, the examples behind the held-out one, and the exam on them."""

    train: TokenizedSet
    held_out: TokenizedSet
    examples: list[Any]
    task_evaluator: TaskEvaluator | None


def on_node(make: Callable[[], TokenizedSet]) -> TokenizedSet:
    """Tokenized once on every node. Collective."""
    return TokenizedSet.from_bytes(collectives.from_node(lambda: make().to_bytes()))


def both_parts(run: RunConfig, read: Callable[[str, str], list[Any]]) -> tuple[list[Any], list[Any]]:
    """Training and held-out examples: of two splits, or of the one file there is. read: (path, split) -> examples."""
    if not run.data.eval_data_path and Path(run.data.data_path).is_file():
        return split_held_out(read(run.data.data_path, "train"), run.data.eval_size or HELD_OUT, run.optim.seed)
    held = read(run.data.eval_data_path or run.data.data_path, "validation")
    return read(run.data.data_path, "train"), held[: run.data.eval_size or None]


def instructions(run: RunConfig, base: Base, now: datetime) -> Sets:
    """Conversations; loss and perplexity judge them."""
    examples = load_examples(run.data.data_path)
    if run.data.eval_data_path:
        held = load_examples(run.data.eval_data_path)[: run.data.eval_size or None]
    else:
        examples, held = split_held_out(examples, run.data.eval_size or HELD_OUT, run.optim.seed)
    length = run.data.max_seq_length
    sets = [on_node(lambda p=part: build_dataset(p, base.tokenizer, length, now)) for part in (examples, held)]
    return Sets(*sets, held, None)


def classes(run: RunConfig, base: Base, _: datetime) -> Sets:
    """GLUE for an encoder."""
    parts = both_parts(run, lambda path, split: glue.read(run.data.task, path, split))
    sets = [on_node(lambda p=part: glue.encode(p, base.tokenizer, run.data.max_seq_length)) for part in parts]
    return Sets(*sets, parts[1], ClassEvaluator(run.data.task, sets[1]))


def spans(run: RunConfig, base: Base, _: datetime) -> Sets:
    """SQuAD; of a single file articles are held out, so that no context is known from training."""
    if not run.data.eval_data_path and Path(run.data.data_path).is_file():
        train, held = squad.split_by_article(squad.read(run.data.data_path, "train"), HELD_ARTICLES, run.optim.seed)
        parts = train, held[: run.data.eval_size or None]
    else:
        parts = both_parts(run, squad.read)
    lengths = run.data.max_seq_length, run.data.doc_stride
    sets = [on_node(lambda p=part: squad.encode(p, base.tokenizer, *lengths)) for part in parts]
    return Sets(*sets, parts[1], SpanEvaluator(parts[1], squad.windows(parts[1], base.tokenizer, *lengths)))


def texts(run: RunConfig, base: Base, _: datetime) -> Sets:
    """Texts from texts: summaries, or GLUE in words."""
    name = run.data.task if run.data.task in TEXTS else f"{seq2seq.T5}{run.data.task}"
    parts = both_parts(run, lambda path, split: seq2seq.read(name, path, split))
    lengths = run.data.max_seq_length, run.data.max_target_length
    sets = [on_node(lambda p=part: seq2seq.encode(p, base.tokenizer, *lengths)) for part in parts]
    references = [pair.target for pair in parts[1]]
    return Sets(
        *sets, parts[1], TextEvaluator(run.data.task, sets[1], references, base.tokenizer, run.data.max_target_length)
    )


READERS: dict[str, Callable[[RunConfig, Base, datetime], Sets]] = {
    LANGUAGE_MODEL: instructions,
    CLASSIFICATION: classes,
    ANSWERS: spans,
    GENERATION: texts,
}
