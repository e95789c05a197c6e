"""Reads the data of a run: training and evaluation sets by task, the data that scores, and texts of the perplexity."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import torch

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL, TEXTS
from apt_ds.data import glue, seq2seq
from apt_ds.data.length_order import Order
from apt_ds.data.mmlu import SUBJECTS, Mmlu
from apt_ds.data.mmlu import load as load_mmlu
from apt_ds.data.rows import Rows
from apt_ds.data.sources import WeightedSource, parse_sources
from apt_ds.data.tokenized import TokenizedSet
from apt_ds.eval.corpus_perplexity import text_blocks
from apt_ds.eval.mmlu import MmluEvaluator
from apt_ds.eval.task_evaluators import ClassEvaluator, TextEvaluator
from apt_ds.models.architectures import architecture_of
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives, notices
from apt_ds.training.prepared_data import train_and_held_out
from apt_ds.training.questions import read_spans
from apt_ds.training.run_data import Data, repair_sources, scored_sources
from apt_ds.training.sampling import Sampled, calibration_order, sampling
from apt_ds.training.sources import Sets, SourceReader
from apt_ds.training.streaming import Stream, StreamOrder, open_stream

WARN_ABOVE = 0.01  # fraction of examples left out


def read_data(run: RunConfig, base: Base, now: datetime | None = None) -> Data:
    """Read and split on every rank, and tokenize once on every node. Collective.

    Args:
        run: the options.
        base: its tokenizer and kind of task decide the reader.
        now: the time that chat templates write. None takes rank 0's clock for all ranks.
    """
    now = now or collectives.on_main(datetime.now)
    if not collectives.is_main():
        # rank 0 warns of the same files
        logging.getLogger("apt_ds.data").setLevel(logging.ERROR)
    sources = sources_of(run, base, "--data_path", run.data.data_path)
    stream: Stream | None = None
    if run.data.streaming:
        sets, stream = read_stream(run, base, now, sources)
        steps, batch = run.optim.max_steps, run.optim.global_batch(collectives.world_size())
        order: Order = StreamOrder(steps * batch, batch)
    else:
        sets = READERS[base.task_type](run, base, now)
        if base.task_type == LANGUAGE_MODEL:
            _warn_of_dropped(sets.train, "training", run.data.max_seq_length)
        order, steps = sampling(run, sets.train, sources, collectives.world_size())
    if base.task_type == LANGUAGE_MODEL:
        _warn_of_dropped(sets.held_out, "evaluation", run.data.max_seq_length)
    calibration = read_calibration(run, base, now)
    texts = read_perplexity_texts(run, base)
    data = Data(
        train=sets.train,
        held_out=sets.held_out,
        held_out_examples=sets.examples,
        order=order,
        total_steps=steps,
        texts=texts,
        task_evaluator=sets.task_evaluator,
        now=now,
        mmlu=read_mmlu(run, base) if run.data.mmlu_path else None,
        sources=sources,
        calibration=calibration,
        stream=stream,
    )
    data.calibration_figures, data.repair_figures = scored_sources(run, data), repair_sources(run, data)
    return data


def _warn_of_dropped(rows: Rows, purpose: str, length: int) -> None:
    """Say on rank 0 how many examples are left out, if they are more than `WARN_ABOVE` of all."""
    every = len(rows) + rows.dropped
    if collectives.is_main() and rows.dropped > WARN_ABOVE * every:
        notices.warn(
            f"{rows.dropped} of {every} {purpose} examples are left out: "
            f"none of their first {length} tokens is trained (--max_seq_length)"
        )


def read_perplexity_texts(run: RunConfig, base: Base) -> dict[str, torch.Tensor]:
    """The token blocks of each text of --perplexity_path, by short names. {} without the option."""
    data = run.data
    if not data.perplexity_path:
        return {}
    if base.task_type != LANGUAGE_MODEL:
        raise UserError(f"--perplexity_path requires a language model: --task {data.task} trains none")
    bos = architecture_of(base.config).begins_with_bos and base.tokenizer.bos_token_id is not None
    return text_blocks(
        data.perplexity_path,
        base.tokenizer,
        data.perplexity_length,
        flag="--perplexity_path",
        bos=bos,
        limit=data.perplexity_blocks,
    )


def read_mmlu(run: RunConfig, base: Base) -> MmluEvaluator:
    """The evaluator of the subjects that --mmlu_path has. Rank 0 reads for all ranks. Collective.

    Raises:
        UserError: the model is no language model, or the folder has no questions, or broken ones.
    """
    path, limit = run.data.mmlu_path, run.data.mmlu_limit
    if base.task_type != LANGUAGE_MODEL:
        raise UserError(f"--mmlu_path requires a language model: --task {run.data.task} trains none")

    def read() -> Mmlu:
        present = [subject for subject in SUBJECTS if (Path(path) / "test" / f"{subject}_test.csv").is_file()]
        if not present:
            raise UserError(f"--mmlu_path {path!r} has no test/SUBJECT_test.csv: give the folder of MMLU's CSV files")
        return load_mmlu(path, present, limit, flag="--mmlu_path")

    return MmluEvaluator(collectives.on_main(read), base.tokenizer, run.optim.per_device_eval_batch_size)


def sources_of(run: RunConfig, base: Base, flag: str, path: str) -> tuple[WeightedSource, ...]:
    """The sources that an option names. Language models alone take several.

    Raises:
        UserError: the option names several sources for another task.
    """
    if base.task_type != LANGUAGE_MODEL:
        if not os.path.exists(path) and len(parse_sources(path, flag)) > 1:
            raise UserError(f"{flag} {path!r} names several sources: --task {run.data.task} takes one")
        return (WeightedSource(path),)
    return tuple(parse_sources(path, flag))


def read_calibration(run: RunConfig, base: Base, now: datetime) -> Sampled | None:
    """The data of --calibration_path, None without one. Collective."""
    path, flag = run.data.calibration_path, "--calibration_path"
    if not path:
        return None
    sources = sources_of(run, base, flag, path)
    if base.task_type == LANGUAGE_MODEL:
        rows = SourceReader(run, base, now).whole(path, flag)
    else:
        # the training part of a reader whose evaluation part is as small as it can be
        rows = READERS[base.task_type](run.replace(data_path=path, eval_data_path=path, eval_size=1), base, now).train
    return Sampled(rows, calibration_order(run, rows, sources, collectives.world_size()), sources)


def read_language(run: RunConfig, base: Base, now: datetime) -> Sets:
    """Conversations and plain text. Loss and perplexity evaluate them."""
    return SourceReader(run, base, now).sets()


def read_stream(run: RunConfig, base: Base, now: datetime, sources: Sequence[WeightedSource]) -> tuple[Sets, Stream]:
    """The evaluation set of a run with --streaming, and the stream that it trains on. Collective."""
    stream, held_out, examples = open_stream(run, base, now, sources)
    train = TokenizedSet({}, 0, stream.fingerprint)
    if not run.data.eval_data_path:
        return Sets(train, held_out, examples, None), stream
    return Sets(train, *SourceReader(run, base, now).evaluation(), None), stream


def read_classes(run: RunConfig, base: Base, _: datetime) -> Sets:
    """GLUE for an encoder."""
    recipe = glue.recipe(run.data.task, base.tokenizer, run.data.max_seq_length)
    train, held_out = train_and_held_out(run, lambda path, part: glue.find(run.data.task, path, part), recipe)
    train_set, held_out_set = train.tokenized(), held_out.tokenized()
    return Sets(train_set, held_out_set, held_out.examples(), ClassEvaluator(run.data.task, held_out_set))


def read_texts(run: RunConfig, base: Base, _: datetime) -> Sets:
    """Texts from texts: summaries, or GLUE with its classes as words."""
    name = run.data.task if run.data.task in TEXTS else f"{seq2seq.T5}{run.data.task}"
    lengths = run.data.max_seq_length, run.data.max_target_length
    recipe = seq2seq.recipe(name, base.tokenizer, *lengths)
    train, held_out = train_and_held_out(run, lambda path, part: seq2seq.find(name, path, part), recipe)
    train_set, held_out_set, examples = train.tokenized(), held_out.tokenized(), held_out.examples()
    references = [pair.target for pair in examples]
    evaluator = TextEvaluator(run.data.task, held_out_set, references, base.tokenizer, run.data.max_target_length)
    return Sets(train_set, held_out_set, examples, evaluator)


READERS: dict[str, Callable[[RunConfig, Base, datetime], Sets]] = {
    LANGUAGE_MODEL: read_language,
    CLASSIFICATION: read_classes,
    ANSWERS: read_spans,
    GENERATION: read_texts,
}
