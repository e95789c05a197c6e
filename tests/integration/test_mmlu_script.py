"""`launchers/eval_mmlu.py`: table, figures, going on after an interruption, and every mistake as one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apt_ds.commands import mmlu as command
from apt_ds.data import mmlu as data
from apt_ds.data.mmlu import Question
from apt_ds.eval import commands, mmlu
from tests.support import multiprocess
from tests.support.launcher import script_caller
from tests.support.mmlu_fixtures import SUBJECTS, model, tokenizer, write_exam
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exam(tmp_path_factory.mktemp("mmlu"))


@pytest.mark.parametrize("own_file", [False, True])
def test_an_interrupted_script_asks_only_what_is_missing(
    own_file: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / ("kept" if own_file else "mmlu.json.progress")
    words = ["--model", str(place / "model"), "--data_dir", str(place / "data"), "--subjects", ",".join(SUBJECTS)]
    words += ["--json", str(tmp_path / "mmlu.json"), *(["--resume_file", str(kept)] if own_file else [])]
    given = command.parser().read(words)
    original, asked = mmlu.answer_subject, []

    def answer(runner: Any, encoder: Any, rows: list[Question], *more: Any) -> list[int]:
        asked.append(rows[0].subject)
        if asked == [*SUBJECTS[:2]]:
            raise KeyboardInterrupt
        return original(runner, encoder, rows, *more)

    monkeypatch.setattr(mmlu, "answer_subject", answer)
    with pytest.raises(KeyboardInterrupt):
        commands.run_mmlu(given)
    assert list(json.loads(kept.read_text(encoding="utf8"))["answers"]) == [SUBJECTS[0]]
    figures = commands.run_mmlu(given)
    assert asked == [*SUBJECTS[:2], *SUBJECTS[1:]]
    monkeypatch.setattr(mmlu, "answer_subject", original)
    whole = mmlu.evaluate(model(), tokenizer(), data.load(str(place / "data"), SUBJECTS)).figures()
    assert {key: figures[key] for key in whole} == whole
    # a file the user named is the user's
    assert kept.exists() == own_file


def launch(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(ROOT / "launchers" / "eval_mmlu.py"), *words]
    return subprocess.run(
        call, env=multiprocess.environment(**more), capture_output=True, text=True, timeout=200, check=False
    )


def test_the_script_writes_table_and_figures(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "mmlu.json"
    words = ["--model", str(place / "model"), "--data_dir", str(place / "data"), "--subjects", ",".join(SUBJECTS)]
    ended = launch(*words, "--json", str(path), "--batch_size", "4")
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(path.read_text(encoding="utf8"))
    asked = data.load(str(place / "data"), SUBJECTS)
    expected = mmlu.evaluate(model(), tokenizer(), asked).figures()
    assert {key: figures[key] for key in expected} == expected
    assert "world_religions" in ended.stdout and "STEM" in ended.stdout
    assert os.listdir(tmp_path) == ["mmlu.json"]


def no_model(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(tmp_path), "--data_dir", str(place / "data"), "--subjects", "anatomy"]


def unknown_subject(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--data_dir", str(place / "data"), "--subjects", "anatmy"]


def missing_files(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--data_dir", str(place / "data")]


def unknown_flag(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--num_shot", "3"]


def no_folder_for_json(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--json", str(tmp_path / "no" / "x.json")]


def folder_for_json(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--json", str(tmp_path)]


def folder_for_answers(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--resume_file", str(tmp_path)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (no_model, "no model and tokenizer there"),
        (unknown_subject, "'anatmy' is not a subject of MMLU (did you mean anatomy"),
        (missing_files, "lacks dev/abstract_algebra_dev.csv and 107 more files"),
        (unknown_flag, "--num_shot is an unknown option (did you mean --num_shots"),
        (no_folder_for_json, "does not exist"),
        (folder_for_json, "is a folder: give the name of a file"),
        (folder_for_answers, "is a folder: give the name of a file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    words: Callable[[Path, Path], list[str]],
    line: str,
    place: Path,
    tmp_path: Path,
    alone: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = script_caller(command.main, capfd, monkeypatch)(*words(place, tmp_path))
    assert (ended.status, len(ended.mistakes)) == (2, 1), ended.err
    assert line in ended.mistakes[0] and "Traceback" not in ended.err


def test_the_script_ends_with_the_status_of_a_mistake(place: Path, tmp_path: Path) -> None:
    ended = launch(*unknown_flag(place, tmp_path))
    (line,) = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    assert ended.returncode == 2 and "--num_shot is an unknown option" in line and "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_one_line_and_status_2(place: Path) -> None:
    """Without --master_port two runs of one machine meet at the launcher's own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        words = ["--model", str(place / "model"), "--data_dir", str(place / "data"), "--subjects", "anatomy"]
        ended = launch(*words, **alone, MASTER_PORT=port)
    errors = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    assert (ended.returncode, len(errors)) == (2, 1), ended.stderr
    assert f"port {port} is in use" in errors[0] and "Traceback" not in ended.stderr
