"""What a comparison starts for a trained model. `test_compare.py` has the runs and their signals."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from apt_ds.analysis import compare_jobs
from apt_ds.analysis.compare import Comparison, plan
from apt_ds.analysis.compare_jobs import has_local_suite, has_mmlu, only_finished, run_local_suite, run_mmlu
from apt_ds.analysis.compare_table import Trial, tabulate
from apt_ds.analysis.result_table import markdown
from apt_ds.analysis.variants import parse_variants
from apt_ds.commands import evaluate
from apt_ds.commands import mmlu as mmlu_command
from apt_ds.config.errors import UserError
from apt_ds.data.mmlu import SUBJECTS, Mmlu
from tests.support import mmlu_fixtures, tiny
from tests.support.local_tasks import write_folder

SHARED = Comparison(parse_variants("apt[align=8]"), (0.3,), (1, 2), 1, 1e-5, "", 10, False)


def test_local_tasks_are_asked_once_for_the_same_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_folder(tmp_path / "data")
    own = replace(SHARED, local_data=str(data), local_limit=4)
    own.check()
    trials = plan(own, tmp_path)
    started: list[list[str]] = []

    def run_here(trial: Trial, argv: list[str]) -> None:
        """Runs the command in this process."""
        assert argv[:3] == [sys.executable, "-m", "apt_ds.commands.evaluate"]
        started.append(argv)
        monkeypatch.setattr(sys, "argv", argv[2:])
        evaluate.main()

    monkeypatch.setattr(compare_jobs, "run_process", run_here)
    for number, trial in enumerate(trials):
        tiny.save_model(trial.folder / "model", seed=number, max_position_embeddings=512)
        assert not has_local_suite(own, trial)
        run_local_suite(own, trial, False)
        assert has_local_suite(own, trial) and not has_local_suite(replace(own, local_limit=5), trial)
        texts = {"a.txt": 9.0 + number, "b.txt[50%:]": 19.0 + number}
        evaluation = {"corpus_perplexity": texts["a.txt"], "corpus_perplexities": texts, "step_seconds": 1.0}
        training = dict.fromkeys(
            [f"{part}seconds" for part in ("", "steps_", "scoring_", "rebuilds_", "evaluation_")], 1
        )
        summary = {"pruning": {"kept": 0.7}, "training": training | {"peak_memory_bytes": 1, "history": []}}
        summary |= {"after": evaluation | {"peak_memory_bytes": 1}, "after_cut": evaluation}
        (trial.folder / "summary.json").write_text(json.dumps(summary), encoding="utf8")
    assert len(started) == 2
    assert only_finished(own, trials) == trials
    with pytest.raises(
        UserError, match=r"other questions of --local_suite\. Give the same --local_suite and --local_limit"
    ):
        only_finished(replace(own, local_limit=5), trials)
    (row,) = tabulate(trials, {})
    assert row["method"] == "apt[align=8]" and (row["perplexity:b.txt[50%:]"], row["perplexity"]) == (19.5, 9.5)
    answers = [json.loads((trial.folder / "local.json").read_text(encoding="utf8"))["tasks"] for trial in trials]
    assert row["local:mean"] == pytest.approx(sum(tasks["mean"]["accuracy"] for tasks in answers) / 2)
    head, _, line = markdown([row]).splitlines()
    cells = dict(zip(head.strip("| ").split(" | "), line.strip("| ").split(" | "), strict=True))
    assert list(cells)[:6] == [
        *("method", "parameters removed, %", "perplexity of a.txt after the cut"),
        *("perplexity of b.txt[50%:] after the cut", "perplexity of a.txt", "perplexity of b.txt[50%:]"),
    ]
    assert cells["perplexity of b.txt[50%:]"] == "19.5 ± 0.7" and "next sentence accuracy, % (chance 25)" in cells
    assert float(cells["last word log-likelihood"].split(" ")[0]) < 0


def write_mmlu(folder: Path, count: int) -> Path:
    """MMLU with `count` questions of each subject."""
    every = [(subject, mmlu_fixtures.questions(subject, 5, 50)) for subject in SUBJECTS]
    asked = {subject: mmlu_fixtures.questions(subject, count) for subject in SUBJECTS}
    return mmlu_fixtures.write_folder(folder, Mmlu(dict(every), asked))


def test_mmlu_is_asked_again_for_other_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, more = write_mmlu(tmp_path / "data", 2), write_mmlu(tmp_path / "more", 3)
    own = replace(SHARED, mmlu_data=str(data), mmlu_sample=6, seeds=(1,))
    own.check()
    (trial,) = plan(own, tmp_path)
    mmlu_fixtures.model().save_pretrained(trial.folder / "model")
    mmlu_fixtures.tokenizer().save_pretrained(trial.folder / "model")

    def run_here(trial: Trial, argv: list[str]) -> None:
        """Runs the command in this process."""
        assert argv[:3] == [sys.executable, "-m", "apt_ds.commands.mmlu"]
        monkeypatch.setattr(sys, "argv", argv[2:])
        mmlu_command.main()

    monkeypatch.setattr(compare_jobs, "run_process", run_here)
    assert not has_mmlu(own, trial)
    run_mmlu(own, trial, False)
    assert has_mmlu(own, trial)
    (trial.folder / "summary.json").write_text("{}", encoding="utf8")
    assert only_finished(own, [trial]) == [trial]
    with pytest.raises(
        UserError, match=r"other questions of --mmlu_data\. Give the same --mmlu_data and --mmlu_sample"
    ):
        only_finished(replace(own, mmlu_sample=7), [trial])
    for other in (replace(own, mmlu_sample=7), replace(own, mmlu_sample=0), replace(own, mmlu_data=str(more))):
        other.check()
        assert not has_mmlu(other, trial)
    # as an earlier version wrote it: nobody knows which questions these were
    figures = json.loads((trial.folder / "mmlu.json").read_text(encoding="utf8"))
    del figures["questions"]
    (trial.folder / "mmlu.json").write_text(json.dumps(figures), encoding="utf8")
    assert not has_mmlu(own, trial)


def test_mistakes_in_mmlu_are_found_before_training(tmp_path: Path) -> None:
    data = write_mmlu(tmp_path / "data", 2)
    own = replace(SHARED, mmlu_data=str(data))
    with pytest.raises(UserError, match="--mmlu_sample -5 is not allowed: give at least 1, or 0 for all questions"):
        replace(own, mmlu_sample=-5).check()
    with pytest.raises(UserError, match=r"--mmlu_sample 115 is not allowed: --mmlu_data '.*' has 114 questions"):
        replace(own, mmlu_sample=115).check()
    (data / "dev" / "anatomy_dev.csv").unlink()
    with pytest.raises(UserError, match=r"--mmlu_data '.*' lacks dev/anatomy_dev.csv"):
        own.check()
