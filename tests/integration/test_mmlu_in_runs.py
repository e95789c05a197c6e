"""MMLU before and after a run: the accuracy that the script measures of both models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from apt_ds.data import mmlu as data
from apt_ds.eval import mmlu
from apt_ds.eval.loading import load
from tests.support import mmlu_fixtures, tiny
from tests.support.launcher import GRADUAL, Place, Run


@pytest.fixture(scope="module")
def exam(alone: None, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model with letters, questions for it, and instructions to train on. This process is a world of its own."""
    place = Place(tmp_path_factory.mktemp("exam"))
    mmlu_fixtures.write_exam(place.folder)
    tokenizer = mmlu_fixtures.tokenizer()
    tokenizer.eos_token = tiny.tokenizer().eos_token
    tokenizer.save_pretrained(place.folder / "model")
    tiny.save_data(place.folder / "data.json")
    return place


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


def test_a_resumed_run_asks_the_same_questions(exam: Place, run: Run, tmp_path: Path) -> None:
    data_folder, moved = tmp_path / "data", tmp_path / "moved"
    for folder in (data_folder, moved):
        shutil.copytree(exam.folder / "data", folder)
    steps = ["--save_steps", "1", "--save_total_limit", "0", "--mmlu_path", str(data_folder)]
    ended = run(words(exam, tmp_path / "out", *steps, "--mmlu_limit", "7"))
    assert ended.status == 0, ended.err
    saved = ["--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-1"), "--overwrite_output_dir", "true"]
    text = "checkpoint-1: the set of questions of --mmlu_path and --mmlu_limit is not what the checkpoint was made with"
    for changes in (["--mmlu_limit", "3"], ["--mmlu_limit", "7", "--mmlu_path", ""]):
        refused = run(words(exam, tmp_path / "again", *steps, *changes, *saved))
        assert refused.status == 2 and len(refused.mistakes) == 1 and text in refused.mistakes[0], refused.mistakes
    same = run(words(exam, tmp_path / "again", *steps, "--mmlu_limit", "7", "--mmlu_path", str(moved), *saved))
    assert same.status == 0, same.err
    file = moved / "test" / "anatomy_test.csv"
    file.write_text(file.read_text(encoding="utf8").replace("w1,", "w0,", 1), encoding="utf8")
    refused = run(words(exam, tmp_path / "third", *steps, "--mmlu_limit", "7", "--mmlu_path", str(moved), *saved))
    assert refused.status == 2 and len(refused.mistakes) == 1 and text in refused.mistakes[0], refused.mistakes


def test_missing_solved_examples_are_named_by_the_option_of_the_run(exam: Place, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(exam.folder / "data", folder)
    (folder / "dev" / "anatomy_dev.csv").unlink()
    ended = run(words(exam, tmp_path / "out", "--mmlu_path", str(folder)))
    assert ended.status == 2 and ended.mistakes[0].endswith(
        "lacks dev/anatomy_dev.csv. Give the folder of MMLU's original CSV files"
    )
    assert f"--mmlu_path {str(folder)!r} lacks" in ended.mistakes[0]
