"""The sets of a run over SQuAD: the same rows from the cache as in memory."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from apt_ds.config.run_config import RunConfig
from apt_ds.data import squad
from apt_ds.models.loading import Base
from apt_ds.training import datasets, questions
from apt_ds.training.datasets import Sets
from tests.support import multiprocess
from tests.support.launcher import Place
from tests.support.text_fixtures import pair_tokenizer

pytestmark = pytest.mark.usefixtures("alone")

WORDS = "the big cat sees a red dog on the tree "


def folder_of(place: Path) -> Path:
    """Training questions of four articles, and fewer to evaluate, with long contexts."""
    place.mkdir()
    for name, articles in (("train", 4), ("dev", 2)):
        records = [
            {
                "id": f"{name}{article}{number}",
                "title": f"article {article}",
                "context": WORDS * (2 + number) + WORDS.split()[article],
                "question": "the cat sees",
                "answers": [{"text": "red dog", "answer_start": 19}],
            }
            for article in range(articles)
            for number in range(3)
        ]
        text = "\n".join(json.dumps(record) for record in records)
        (place / f"{name}.jsonl").write_text(text, encoding="utf8")
    return place


def read(data: Path, cache: Path, **options: object) -> Sets:
    given = {
        "data_path": str(data),
        "data_cache_dir": str(cache),
        "max_seq_length": 32,
        "doc_stride": 4,
        "eval_size": 5,
    }
    run = RunConfig().replace(**given | options)
    base = cast(Base, SimpleNamespace(tokenizer=pair_tokenizer()))
    return datasets.read_spans(run, base, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("single", [False, True])
def test_rows_of_the_cache_are_those_in_memory(single: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, cache = folder_of(tmp_path / "data"), tmp_path / "cache"
    data = place / "train.jsonl" if single else place
    memory = read(data, cache)
    assert not cache.exists() and len(memory.train) > 12 > len(memory.examples) > 0
    monkeypatch.setattr(questions, "SMALL_BYTES", 0)
    first = read(data, cache)
    calls: list[int] = []
    monkeypatch.setattr(squad, "encode", lambda *_: calls.append(1))
    second = read(data, cache)
    assert calls == [] and len([*cache.iterdir()]) == 2
    for sets in (first, second):
        assert sets.train == memory.train and sets.held_out == memory.held_out and sets.examples == memory.examples
        assert [*sets.train] == [*memory.train]


def test_other_options_have_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, cache = folder_of(tmp_path / "data"), tmp_path / "cache"
    monkeypatch.setattr(questions, "SMALL_BYTES", 0)
    file = place / "train.jsonl"
    sets = [
        read(file, cache),
        read(file, cache, seed=3),
        read(file, cache, doc_stride=5),
        read(file, cache, eval_size=2),
    ]
    prints = [(one.train.fingerprint, one.held_out.fingerprint) for one in sets]
    assert len({train for train, _ in prints}) == 3 and prints[0][0] == prints[3][0] and prints[0][1] != prints[3][1]
    for one, options in zip(sets, ({}, {"seed": 3}, {"doc_stride": 5}, {"eval_size": 2}), strict=True):
        assert read(file, tmp_path / "other", **options).train == one.train


@pytest.mark.dist
def test_ranks_of_a_node_open_what_the_first_made(place: Place, tmp_path: Path) -> None:
    text = place.spoiled("wiki.txt", WORDS * 60)
    (tmp_path / "file").write_text("no folder", "utf-8")
    given = {"folder": str(place.folder), "questions_path": str(folder_of(tmp_path / "data")), "text": text}
    first, second = multiprocess.run(2, "data_jobs.kept_sets", given | {"cache": str(tmp_path / "cache")}, timeout=120)
    assert (first[0], second[0]) == (["tokens", "rows", "rows"], []) and first[1:] == second[1:]
    # a cache that cannot be written
    other = multiprocess.run(2, "data_jobs.kept_sets", given | {"cache": str(tmp_path / "file")}, timeout=120)
    assert [len(rank[0]) for rank in other] == [3, 0] and other[0][1:] == other[1][1:] == first[1:]
