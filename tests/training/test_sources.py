"""Mixtures of instructions and plain text, as a run reads them: parts, held-out examples, calibration, figures."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from apt_ds.config.resolve import resolve
from apt_ds.data.mixture_order import MixtureOrder
from apt_ds.models import loading
from apt_ds.runtime import collectives
from apt_ds.training import datasets
from apt_ds.training.run_data import Data
from tests.support import tiny
from tests.support.launcher import PLAIN, PRETUNING, Place, Run
from tests.training.test_summary_schema import check


@pytest.fixture(scope="module")
def sources(place: Place) -> dict[str, str]:
    """Paths by name: 48 records of instructions, a text file, rows of text."""
    draw = random.Random(3)
    text = [" ".join(draw.choice(tiny.WORDS) for _ in range(draw.randint(20, 90))) for _ in range(40)]
    rows = "\n".join(json.dumps({"text": one}) for one in text[:20])
    return {
        "data": str(place.folder / "data.json"),
        "wiki": place.spoiled("wiki.txt", "\n".join(text)),
        "rows": place.spoiled("rows.jsonl", rows),
    }


def read(place: Place, *flags: str) -> Data:
    run = resolve(place.words(place.folder / "none", *flags))
    return datasets.read_data(run, loading.find_base(run.model.model_name_or_path))


def test_a_mixture_has_its_parts_in_proportion(place: Place, sources: dict[str, str]) -> None:
    data = read(place, "--data_path", f"{sources['data']}:0.75,{sources['wiki']}:0.25", "--eval_size", "8")
    assert isinstance(data.order, MixtureOrder) and data.order.sizes[0] == 48 - 6
    assert data.order.sizes == tuple(row["rows"] for row in data.describe()["sources"])
    assert len(data.held_out) == 8 and len(data.held_out_examples) == 6
    # all tokens of text are trained, the answers of instructions alone
    assert data.held_out[7]["input_ids"] == data.held_out[7]["labels"] != data.held_out[0]["labels"]
    steps = data.total_steps
    drawn = np.array([index for step in range(steps) for index in data.order.indices(step)])
    figures = data.describe()["sources"]
    assert [row["seen"] for row in figures] == [int((drawn < 42).sum()), int((drawn >= 42).sum())]
    assert [row["name"] for row in figures] == [sources["data"], sources["wiki"]]
    assert [row["weight"] for row in figures] == [0.75, 0.25]


def test_weights_belong_to_the_fingerprint(place: Place, sources: dict[str, str]) -> None:
    mixed = [read(place, "--data_path", f"{sources['data']}:{n},{sources['rows']}:1") for n in (1, 1, 2)]
    prints = [data.fingerprints()["train"] for data in mixed]
    assert prints[0] == prints[1] != prints[2]


def test_sources_without_weights_are_one_set(place: Place, sources: dict[str, str]) -> None:
    flags = ["--max_steps", "-1", "--num_train_epochs", "1.5", "--eval_size", "4"]
    data = read(place, "--data_path", f"{sources['data']},{sources['rows']}", *flags)
    figures = data.describe()["sources"]
    assert sum(row["rows"] for row in figures) == len(data.train) == data.order.n
    assert sum(row["seen"] for row in figures) == data.total_steps * data.order.global_batch >= 1.5 * len(data.train)
    assert all(row["rows"] <= row["seen"] <= 2 * row["rows"] for row in figures)


def test_a_source_without_a_share_is_not_evaluated(place: Place, sources: dict[str, str]) -> None:
    mixture = f"{sources['rows']}:0.99,{sources['data']}:0.01"
    aside = read(place, "--data_path", mixture, "--eval_size", "2")
    assert (len(aside.held_out), aside.held_out_examples) == (2, [])
    other = read(place, "--eval_data_path", mixture, "--eval_size", "2")
    assert (len(other.held_out), other.held_out_examples) == (2, [])


def test_evaluation_and_calibration_take_the_same_forms(place: Place, sources: dict[str, str]) -> None:
    flags = ["--eval_data_path", f"{sources['data']}:3,{sources['wiki']}:1", "--calibration_path", sources["rows"]]
    data = read(place, "--data_path", sources["data"], "--eval_size", "8", *flags, "--calibration_steps", "5")
    assert (len(data.train), len(data.held_out), len(data.held_out_examples)) == (48, 8, 6)
    assert data.calibration is not None and data.calibration.order.global_batch == 2
    rows = len(data.calibration.rows)
    assert data.describe()["calibration"] == [{"name": sources["rows"], "weight": 1.0, "rows": rows, "seen": 10}]
    assert data.fingerprints()["calibration"] == data.calibration.rows.fingerprint
    # the default is the training data
    default = read(place, "--data_path", sources["data"], "--calibration_steps", "5")
    assert default.calibration is None and default.fingerprints()["calibration"] == ""
    assert [row["seen"] for row in default.describe()["calibration"]] == [10]
    # whole batches of 2 at each repair
    cut = ["--pruning", "gradual", "--repair", "ls", "--repair_examples", "5", "--calibration_path", sources["rows"]]
    repaired = read(place, "--data_path", sources["data"], *cut).describe()
    assert "calibration" not in repaired
    assert [(row["name"], row["seen"]) for row in repaired["repair"]] == [(sources["rows"], 6)]
    assert "calibration" not in read(place, "--pruning", "gradual").describe()


def test_halves_of_a_text_train_and_are_judged(place: Place, sources: dict[str, str]) -> None:
    wiki = sources["wiki"]
    flags = ["--calibration_path", f"{wiki}[:50%]", "--perplexity_path", f"{wiki}[50%:],{wiki}"]
    data = read(place, "--data_path", sources["data"], *flags, "--perplexity_length", "16", "--perplexity_blocks", "4")
    whole = read(place, "--data_path", wiki, "--perplexity_path", wiki, "--perplexity_length", "16")
    assert data.calibration is not None and 0 < len(data.calibration.rows) < len(whole.train)
    assert list(data.texts) == ["wiki.txt[50%:]", "wiki.txt"] and list(whole.texts) == ["wiki.txt"]
    assert [tokens.shape for tokens in data.texts.values()] == [(4, 16), (4, 16)]
    rows = {tuple(row.tolist()) for row in whole.texts["wiki.txt"]}
    assert all(tuple(row.tolist()) in rows for row in data.texts["wiki.txt"])
    # one text has the fingerprint that earlier checkpoints have
    assert whole.fingerprints()["corpus"] == collectives.digest(whole.texts["wiki.txt"])
    assert data.fingerprints()["corpus"] not in ("", whole.fingerprints()["corpus"])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--perplexity_path", "{wiki}:1,{rows}:2"], "a weight: each text is measured alone, give no weights"),
        (["--perplexity_path", "{wiki},{wiki}"], "is named twice"),
        (["--calibration_path", "{rows}[50%:]"], "a slice requires one .txt file"),
        (["--data_path", "{data}:1,{wiki}:0"], "the weight of '"),
        (["--data_path", "{data}:1,{wiki}"], "has no weight, other sources have one"),
        (["--data_path", "{data}:1,{data}:2"], "is named twice"),
        (["--data_path", "{data}:1,none.json:2"], "no such data file: none.json"),
        (["--data_path", "{data}:1,none.txt:2"], "no such data file: none.txt"),
        (["--data_path", "{data}:1,{wiki}:1", "--eval_size", "90"], "cannot hold out 45 of"),
        (
            ["--data_path", "{wiki}:1,{data}:5", "--eval_size", "60"],
            "--eval_size: cannot hold out 50 of 48 examples of {data}, its share of 60. Give a smaller",
        ),
        (
            ["--data_path", "{wiki}:99,{data}:1", "--eval_size", "6000"],
            "of {wiki}, its share of 6000. Give a smaller --eval_size",
        ),
        (["--data_path", "{data}", "--eval_size", "48"], "of 48 examples of {data}. Give at most 47, or --eval_data"),
        (["--calibration_path", "{rows}", "--pruning", "gradual"], "--calibration_path requires --pruning pretuning"),
        (["--calibration_path", "{rows}", "--score", "random", *PLAIN], "--calibration_path requires a score of data"),
        (["--packing", "--group_by_length"], "--group_by_length requires --packing false"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    flags: list[str], problem: str, place: Place, sources: dict[str, str], tmp_path: Path, run: Run
) -> None:
    ended = run(place.words(tmp_path / "out", *(flag.format(**sources) for flag in flags)))
    assert ended.status == 2 and len(ended.mistakes) == 1, ended.err
    assert problem.format(**sources) in ended.mistakes[0], ended.err
    assert not (tmp_path / "out").exists()


def test_other_tasks_take_one_source(place: Place, tmp_path: Path, run: Run) -> None:
    flags = tiny.save_task(tmp_path, "bert-classes")
    ended = run([*place.words(tmp_path / "out"), *flags, "--data_path", "a.tsv:1,b.tsv:1"])
    assert ended.status == 2 and "names several sources: --task sst2 takes one" in ended.mistakes[0]


def test_a_run_over_a_mixture_says_what_it_saw(place: Place, sources: dict[str, str], tmp_path: Path, run: Run) -> None:
    flags = ["--data_path", f"{sources['data']}:0.5,{sources['wiki']}:0.5", "--calibration_path", sources["wiki"]]
    flags += ["--packing", "--dataloader_num_workers", "2", "--max_steps", "3", "--profile", "--report", "true"]
    flags += ["--perplexity_path", f"{sources['wiki']}[:50%],{sources['wiki']}[50%:]", "--perplexity_length", "32"]
    ended = run(place.words(tmp_path / "out", *PRETUNING, *flags))
    assert ended.status == 0, ended.err
    summary = check(tmp_path / "out")
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf8")
    for when in ("before", "after_cut", "after"):
        values = summary[when]["corpus_perplexities"]
        assert list(values) == ["wiki.txt[:50%]", "wiki.txt[50%:]"] and len(set(values.values())) == 2
        assert values["wiki.txt[:50%]"] == summary[when]["corpus_perplexity"]
        for name, value in values.items():
            (line,) = [line for line in ended.out.splitlines() if line.startswith(f"  perplexity, {name} ")]
            (row,) = [line for line in card.splitlines() if line.startswith(f"| perplexity of {name} |")]
            assert f" {value:,.2f} " in line and f" {value:.3f} " in row
    assert "corpus perplexity" not in ended.out
    assert [row["seen"] for row in summary["data"]["sources"]] == [3, 3]
    assert [row["seen"] for row in summary["data"]["calibration"]] == [6]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(0.3 < line["non_padding"] <= 1 for line in lines) and 0.3 < summary["training"]["non_padding"] <= 1
    # text alone asks no questions, and the report says nothing of answers
    words = place.words(tmp_path / "text", "--data_path", sources["wiki"], "--pruning", "none", "--max_steps", "3")
    ended = run([*words, "--group_by_length", "--report", "true"])
    assert ended.status == 0, ended.err
    assert check(tmp_path / "text")["samples"] == []
