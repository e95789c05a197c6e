"""MMLU before and after a run: the accuracy that the script measures of both models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from apt_ds.data import mmlu as data
from apt_ds.eval import mmlu
from apt_ds.eval.loading import load
from tests.support import mmlu_fixtures, tiny
from tests.support.launcher import GRADUAL, Place, Run, caller, own_world


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A model with letters, questions for it, and instructions to tune it on. This process is a world of its own."""
    place = Place(tmp_path_factory.mktemp("exam"))
    mmlu_fixtures.write_exam(place.folder)
    tokenizer = mmlu_fixtures.tokenizer()
    tokenizer.eos_token = tiny.tokenizer().eos_token
    tokenizer.save_pretrained(place.folder / "model")
    tiny.save_data(place.folder / "data.json")
    with own_world():
        yield place


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """What `launchers/train.py` does, in this process."""
    return caller(capfd, monkeypatch)


def words(place: Place, output: Path, *more: str) -> list[str]:
    return place.words(output, *GRADUAL, "--max_steps", "2", "--report", "false", *more)


def test_a_run_measures_what_the_script_measures(exam: Place, run: Run, tmp_path: Path) -> None:
    folder = exam.folder / "data"
    ended = run(words(exam, tmp_path / "out", "--mmlu_path", str(folder), "--mmlu_limit", "7"))
    assert ended.status == 0, ended.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf8"))
    questions = data.load(str(folder), mmlu_fixtures.SUBJECTS, limit=7)
    for when, source in (("before", exam.folder / "model"), ("after", tmp_path / "out" / "model")):
        loaded = load(str(source))
        expected = mmlu.evaluate(loaded.runner, loaded.tokenizer, questions).figures()
        assert expected["count"] == 21
        assert summary[when]["mmlu"] == pytest.approx(100 * expected["accuracy"]), when
    (line,) = [line for line in ended.out.splitlines() if "MMLU accuracy, %" in line]
    assert line.split()[-3] == f"{summary['before']['mmlu']:.2f}"


def test_the_engine_stays_in_its_mode() -> None:
    model = mmlu_fixtures.planted("C").train()
    evaluator = mmlu.MmluEvaluator(mmlu_fixtures.small_set(8), mmlu_fixtures.tokenizer(), 4)
    # answers are in turn A, B, C, D
    assert evaluator.accuracy(model) == 25.0 and model.training


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        ("nowhere", r"--mmlu_path '.*nowhere' has no test/SUBJECT_test.csv: give the folder of MMLU's CSV files"),
        ("letters", "this tokenizer has no single token for each of"),
        ("shots", "anatomy has 2 solved examples"),
    ],
)
def test_mistakes_end_the_run_before_it_writes(
    spoil: str, text: str, exam: Place, run: Run, tmp_path: Path, place: Place
) -> None:
    folder, where = tmp_path / spoil, exam
    if spoil != "nowhere":
        asked = mmlu_fixtures.small_set(4)
        shots = {subject: rows[:2] if spoil == "shots" else rows for subject, rows in asked.dev.items()}
        mmlu_fixtures.write_folder(folder, data.Mmlu(shots, asked.test))
    if spoil == "letters":
        where = place
    ended = run(words(where, tmp_path / "out", "--mmlu_path", str(folder)))
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert re.search(text, ended.mistakes[0]), ended.mistakes
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["bert-classes", "t5"])
def test_only_language_models_have_a_perplexity(kind: str, run: Run, tmp_path: Path) -> None:
    named = tiny.save_task(tmp_path / "task", kind)
    text = tmp_path / "text.txt"
    text.write_text("the cat sees a dog " * 50, encoding="utf8")
    ended = run(Place(tmp_path).words(tmp_path / "out", *named, "--perplexity_path", str(text)))
    assert ended.status == 2 and "--perplexity_path requires a language model" in ended.mistakes[0]
    assert not (tmp_path / "out").exists()


def test_only_language_models_have_mmlu(exam: Place, run: Run, tmp_path: Path) -> None:
    named = tiny.save_task(tmp_path / "task", "bert-classes")
    ended = run(Place(tmp_path).words(tmp_path / "out", *named, "--mmlu_path", str(exam.folder / "data")))
    assert ended.status == 2 and "--mmlu_path requires a language model" in ended.mistakes[0]
