"""Jobs of `multiprocess.py` that read and tokenize data on several ranks."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from apt_ds.data import kept, plain_text, prepared
from apt_ds.models import loading
from apt_ds.models.loading import Base
from apt_ds.runtime import collectives, zero
from apt_ds.training import datasets, prepared_data, questions
from tests.support.counted_calls import CountedCalls
from tests.support.jobs import run_config
from tests.support.text_fixtures import pair_tokenizer


def tokenized_once(folder: str) -> list[int]:
    """How many files each rank has read and tokenized, with two ranks on the first node and one on the second."""
    os.environ["LOCAL_RANK"] = str(collectives.rank() % 2)
    run = run_config(folder, 3, False, [])
    zero.init_distributed()
    prepare = prepared_data.prepare = CountedCalls(prepared_data.prepare)
    data = datasets.read_data(run, loading.find_base(run.model.model_name_or_path))
    collectives.agree("the data", data.train.fingerprint)
    assert datasets.TokenizedSet.from_bytes(data.train.to_bytes()) == data.train
    return collectives.gather_objects(prepare.count)


def shared_cache(folder: str, cache: str) -> list[list[Any]]:
    """What each of two ranks of a node gets of a large data set: made here or not, fingerprints, files, a row."""
    os.environ["LOCAL_RANK"] = str(collectives.rank())
    run = run_config(folder, 3, False, ["--data_cache_dir", cache])
    zero.init_distributed()
    prepared.SMALL, prepared.SMALL_BYTES = 3, 10
    calls: list[str] = []
    original = prepared.write_rows
    prepared.write_rows = lambda *given: calls.append("made") or original(*given)  # type: ignore[func-returns-value]
    data = datasets.read_data(run, loading.find_base(run.model.model_name_or_path))
    mapped = "/rows_0" in Path("/proc/self/maps").read_text("utf-8")
    examples = [example.where.rpartition("/")[2] for example in data.held_out_examples]
    content = [len(calls), sorted(data.fingerprints().values()), mapped, data.train[0], data.held_out[0], examples]
    return collectives.gather_objects(content)


def kept_sets(folder: str, questions_path: str, text: str, cache: str) -> list[list[Any]]:
    """What each of two ranks of a node gets of SQuAD and of plain text: made here or not, fingerprints, rows."""
    os.environ["LOCAL_RANK"] = str(collectives.rank())
    flags = ["--data_cache_dir", cache, "--data_path", text, "--eval_size", "2"]
    run = run_config(folder, 3, False, flags)
    zero.init_distributed()
    questions.SMALL_BYTES = kept.SMALL_BYTES = 0
    calls: list[str] = []
    originals = kept.write_columns, plain_text.write_tokens
    kept.write_columns = lambda *given: calls.append("rows") or originals[0](*given)  # type: ignore[func-returns-value]
    plain_text.write_tokens = lambda *given: calls.append("tokens") or originals[1](*given)  # type: ignore[func-returns-value]
    data = datasets.read_data(run, loading.find_base(run.model.model_name_or_path))
    asked = run.replace(data_path=questions_path, max_seq_length=32, doc_stride=4, eval_size=5)
    base = cast(Base, SimpleNamespace(tokenizer=pair_tokenizer()))
    sets = questions.read_spans(asked, base, datetime.now())
    prints = [*sorted(data.fingerprints().values()), sets.train.fingerprint, sets.held_out.fingerprint]
    return collectives.gather_objects([calls, prints, data.train[0], sets.train[0], sets.held_out[0]])


def unlike_nodes(folder: str) -> list[str]:
    """Fingerprints of the training data of two nodes, of which the second has more rows than fit into memory."""
    os.environ["LOCAL_RANK"] = "0"
    cache = str(Path(folder) / f"cache_{collectives.rank()}")
    run = run_config(folder, 3, False, ["--data_cache_dir", cache])
    zero.init_distributed()
    if collectives.rank():
        prepared.SMALL, prepared.SMALL_BYTES = 3, 10
    data = datasets.read_data(run, loading.find_base(run.model.model_name_or_path))
    return collectives.gather_objects(data.train.fingerprint)


def clocks(folder: str, model: str, seconds: list[int]) -> list[list[str]]:
    """The first words of every rank's rows; each rank is a node of its own, whose clock shows one of `seconds`."""
    os.environ["LOCAL_RANK"] = "0"
    run = run_config(folder, 3, False, ["--model_name_or_path", model])
    zero.init_distributed()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2024, 5, 6, 7, 8, seconds[collectives.rank()])

    datasets.datetime = Clock
    base = loading.find_base(run.model.model_name_or_path)
    data = datasets.read_data(run, base)
    rows = [*data.train.rows, *data.held_out.rows]
    return collectives.gather_objects(sorted({base.tokenizer.decode(row["input_ids"][:1]) for row in rows}))
