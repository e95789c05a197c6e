"""Runs that train on the dense model's own answers: --rewrite_answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GenerationConfig

from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import GlobalOrder
from apt_ds.data.conversations import Example, load_examples
from apt_ds.data.length_order import LengthOrder
from apt_ds.data.mixture_order import MixtureOrder
from apt_ds.data.rows import Joined
from apt_ds.data.tokenized import IGNORED
from apt_ds.models import loading
from apt_ds.training import datasets, dense_model, rewriting
from apt_ds.training.run_data import Data
from tests.support import multiprocess, tiny
from tests.support.launcher import PLAIN, PRETUNING, Place, Run, inputs
from tests.training.test_summary_schema import check

# a repair would read most examples, so that most would be rewritten
REWRITE = ["--rewrite_answers", "--rewrite_max_new_tokens", "12", *PLAIN]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Data, and a model that ends about half of its answers: 50 words of its vocabulary end them."""
    place = inputs(tmp_path_factory.mktemp("rewriting"))
    GenerationConfig(eos_token_id=[2, *range(150, 170)]).save_pretrained(place.folder / "model")
    return place


def options(place: Place, cache: Path, *flags: str) -> RunConfig:
    return resolve(place.words(cache.parent / "none", *REWRITE, *PRETUNING, "--data_cache_dir", str(cache), *flags))


def both(config: RunConfig) -> tuple[Data, Data]:
    """The data of a run as it is read, and with new answers."""
    base = loading.find_base(config.model.model_name_or_path)
    data = datasets.read_data(config, base)
    return data, rewriting.with_own_answers(config, base, data)


def answers(cache: Path) -> list[list[Example]]:
    """The examples of all answer files of a cache."""
    return [load_examples(file) for file in sorted(cache.glob("*/answers.jsonl"))]


def test_the_run_trains_what_the_model_says(alone: None, place: Place, tmp_path: Path) -> None:
    config = options(place, tmp_path / "cache", "--max_steps", "-1", "--num_train_epochs", "1")
    before, after = both(config)
    (written,) = answers(tmp_path / "cache")
    figures = after.rewritten
    assert figures is not None and figures["rewritten"] == len(written) == len(after.train) == len(before.train)
    assert 0 < figures["unfinished"] < figures["rewritten"] and 1 <= figures["mean_tokens"] <= 12
    originals = [example.instruction for example in load_examples(config.data.data_path)]
    assert {example.instruction for example in written} < set(originals)
    # an answer that was cut trains no end, any other does
    ends = [row["labels"][-1] == 2 for row in (after.train[i] for i in range(len(after.train)))]
    assert ends == [not example.unfinished for example in written]
    assert figures["unfinished"] == ends.count(False)
    # the evaluation set stays
    assert after.held_out is before.held_out and after.total_steps == before.total_steps
    assert after.fingerprints()["train"] != before.fingerprints()["train"]


def test_answers_are_written_once(
    alone: None, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = []
    original = dense_model.loading.load_model
    monkeypatch.setattr(dense_model.loading, "load_model", lambda *given: loaded.append(1) or original(*given))
    config = options(place, tmp_path / "cache")
    first = both(config)[1]
    assert "rewriting 16 of 16 answers greedily" in capfd.readouterr().err
    again = both(config)[1]
    assert len(loaded) == 1 and again.fingerprints() == first.fingerprints() and again.rewritten == first.rewritten
    assert "16 answers rewritten" in capfd.readouterr().err
    # other options have answers of their own
    for change in ({"rewrite_max_new_tokens": 5}, {"rewrite_temperature": 1.0}, {"max_seq_length": 30}):
        both(config.replace(**change))
    assert len(loaded) == 4 == len(answers(tmp_path / "cache"))
    # a damaged file is written again
    for file in (tmp_path / "cache").glob("*/answers.jsonl"):
        file.write_text("{}\n", "utf-8")
    assert both(config)[1].fingerprints() == first.fingerprints() and len(loaded) == 5


def test_only_examples_that_the_run_trains_are_rewritten(alone: None, place: Place, tmp_path: Path) -> None:
    before, after = both(options(place, tmp_path / "cache", "--max_steps", "4", "--calibration_steps", "3"))
    trained = sorted({i for step in range(4) for i in before.order.indices(step)})
    assert len(before.train) > len(trained) == len(after.train) == 8
    heads = [row_prompt(before.train[i]) for i in trained]
    assert [row_prompt(after.train[i]) for i in range(8)] == heads
    assert after.total_steps == 4 and after.order.global_batch == 2


def row_prompt(row: dict[str, Any]) -> list[int]:
    first = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
    return list(row["input_ids"][:first])


def test_plain_text_of_a_mixture_stays(alone: None, place: Place, tmp_path: Path) -> None:
    text = place.spoiled("wiki.txt", " ".join(tiny.WORDS * 40))
    mixture = f"{place.folder / 'data.json'}:0.75,{text}:0.25"
    before, after = both(options(place, tmp_path / "cache", "--data_path", mixture))
    assert isinstance(before.train, Joined) and isinstance(after.train, Joined)
    assert after.train.parts[1] is before.train.parts[1]
    assert len(after.train.parts[0]) == len(answers(tmp_path / "cache")[0]) == before.describe()["sources"][0]["seen"]
    assert after.describe()["sources"][1] == before.describe()["sources"][1]


@pytest.mark.parametrize(
    ("order", "flags", "expected"),
    [
        (GlobalOrder(40, 4, 1), ["--max_steps", "-1"], None),
        (GlobalOrder(40, 4, 1), ["--max_steps", "10"], None),
        (GlobalOrder(40, 4, 1), ["--max_steps", "3", "--pruning", "none"], 12),
        (GlobalOrder(40, 4, 1), ["--max_steps", "3", "--calibration_steps", "5"], 20),
        (GlobalOrder(40, 4, 1), ["--max_steps", "3", "--repair", "ls", "--repair_examples", "21"], 24),
        (GlobalOrder(90, 4, 1), ["--max_steps", "3", "--repair", "ls", "--repair_examples", "49"], 52),
        (GlobalOrder(90, 4, 1), ["--max_steps", "3", "--pruning", "gradual", "--repair", "ls"], None),
        (
            GlobalOrder(90, 4, 1),
            ["--max_steps", "3", "--pruning", "gradual", "--repair", "ls", "--repair_examples", "21"],
            24,
        ),
        (GlobalOrder(90, 4, 1), ["--max_steps", "3", "--score", "obs", "--repair_examples", "21"], 24),
        (GlobalOrder(90, 4, 1), ["--max_steps", "3", "--calibration_steps", "3", "--scale_steps", "8"], 40),
        (LengthOrder(GlobalOrder(40, 4, 1), np.arange(40), 1, 3), ["--max_steps", "3", "--pruning", "none"], 12),
        (MixtureOrder((30, 10), (1.0, 1.0), 4, 1), ["--max_steps", "8", "--pruning", "none"], 26),
    ],
)
def test_rows_that_a_run_takes(place: Place, order: Any, flags: list[str], expected: int | None) -> None:
    config = resolve(place.words(place.folder / "none", *PLAIN, "--calibration_steps", "2", *flags))
    rows = rewriting.wanted_rows(config, order, config.optim.max_steps, several=False)
    assert (None if rows is None else len(rows)) == expected
    assert isinstance(order, MixtureOrder) or rewriting.wanted_rows(config, order, 3, several=True) is None


def test_a_whole_run_and_its_resumption(place: Place, tmp_path: Path, run: Run) -> None:
    words = [*PRETUNING, *REWRITE, "--data_cache_dir", str(tmp_path / "cache"), "--max_steps", "3", "--save_steps", "2"]
    ended = run(place.words(tmp_path / "out", *words))
    assert ended.status == 0, ended.err
    summary = check(tmp_path / "out")
    assert summary["data"]["rewritten"]["rewritten"] == summary["data"]["train"] == 6
    again = run(place.words(tmp_path / "out", *words, "--resume_from_checkpoint", str(tmp_path / "out/checkpoint-2")))
    assert again.status == 0, again.err
    resumed = check(tmp_path / "out")
    assert resumed["after"]["held_out_loss"] == summary["after"]["held_out_loss"]
    assert resumed["data"] == summary["data"]
    # other answers are other data
    refused = run(
        place.words(tmp_path / "out", *words, "--resume_from_checkpoint", "last", "--rewrite_max_new_tokens", "3")
    )
    assert refused.status == 2 and len(refused.mistakes) == 1, refused.err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--streaming"], "--rewrite_answers does not support --streaming"),
        (["--task", "sst2"], "--rewrite_answers does not support --task sst2"),
        (["--init_adapters", "somewhere"], "--rewrite_answers does not support --init_adapters"),
        (["--data_path", "{text}"], "holds plain text without answers"),
    ],
)
def test_mistakes_are_one_line(place: Place, tmp_path: Path, run: Run, flags: list[str], problem: str) -> None:
    text = place.spoiled("only.txt", " ".join(tiny.WORDS * 60))
    ended = run(place.words(tmp_path / "out", *REWRITE, *(flag.format(text=text) for flag in flags)))
    assert ended.status == 2 and len(ended.mistakes) == 1 and problem in ended.mistakes[0], ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.dist
@pytest.mark.parametrize(("stage", "nodes"), [(2, 1), (3, 2)])
def test_ranks_share_the_work(alone: None, place: Place, tmp_path: Path, stage: int, nodes: int) -> None:
    """Two ranks of one node or of two write what one writes. A node that lacks the file later gets the other's."""
    one = both(options(place, tmp_path / "cache", "--per_device_train_batch_size", "4"))[1]
    arguments = {"folder": str(place.folder), "output": str(tmp_path), "stage": stage, "nodes": nodes}
    results = multiprocess.run(2, "rewriting_jobs.shared", arguments)
    assert results["fingerprints"] == [one.fingerprints()["train"]] * 6
    assert results["loaded"] == [1, 1]
    files = [list((tmp_path / f"node_{node}").glob("*/answers.jsonl")) for node in range(nodes)]
    assert all(len(each) == 1 for each in files)
    assert len({each[0].read_text("utf-8") for each in files}) == 1
