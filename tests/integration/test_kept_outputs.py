"""What stays in the output folder of a run that a mistake ends. All in this process, a world of one."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.models import loading
from apt_ds.training.evaluations import Evaluations
from tests.support.launcher import Place, Run
from tests.support.spoiled_inputs import config_with, folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", ["load", "judge"])
@pytest.mark.parametrize("existed", ["nothing", "empty", "full"])
def test_a_run_that_fails_before_its_first_step_leaves_what_was_there(
    where: str, existed: str, place: Place, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it fails by: the mended command then runs without another flag."""

    def fail(*given: object) -> None:
        raise UserError("no more of this")

    output = tmp_path / "new" / "out"
    if existed != "nothing":
        (output / "notes" if existed == "full" else output).mkdir(parents=True)
    words = place.words(output, "--max_steps", "1", "--calibration_steps", "1", "--report", "false")
    with monkeypatch.context() as patch:
        patch.setattr(*((loading, "load_model") if where == "load" else (Evaluations, "_evaluate")), fail)
        ended = run([*words, "--overwrite_output_dir"] if existed == "full" else words)
    assert ended.status == 2 and ended.mistakes == ["error: no more of this"]
    if existed == "full":
        assert (output / "notes").is_dir() and (where == "judge" or len(list(output.iterdir())) == 1)
        return
    assert output.is_dir() is (tmp_path / "new").is_dir() is (existed == "empty")
    assert run(words).status == 0


def test_a_mistake_leaves_the_run_that_it_was_to_replace(place: Place, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "summary.json").write_text("mine", encoding="utf8")
    spoil = folder(config__json=config_with(num_hidden_layers=3))  # more layers than weights
    assert run(place.words(output, "--overwrite_output_dir", *spoil(place))).status == 2
    assert contents(output) == {"summary.json": b"mine"}


def test_resuming_on_a_base_that_computes_something_else_is_refused(place: Place, tmp_path: Path, run: Run) -> None:
    """Its weights are the same; what only names or stores it may differ."""
    words = ["--max_steps", "2", "--calibration_steps", "1", "--report", "false", "--save_steps", "1"]
    assert run(place.words(tmp_path / "out", *words)).status == 0
    words += ["--resume_from_checkpoint", "last"]
    other = folder(config__json=config_with(rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
    before = contents(tmp_path / "out")
    ended = run(place.words(tmp_path / "out", *words, *other(place)))
    assert ended.status == 2 and len(ended.mistakes) == 1
    for part in ("checkpoint-2", "rope_parameters.rope_theta 10000.0", "500000.0"):
        assert part in ended.mistakes[0]
    assert contents(tmp_path / "out") == before
    same = folder(config__json=config_with(use_cache=False, transformers_version="4.1", architectures=None))
    assert run(place.words(tmp_path / "out", *words, *same(place))).status == 0


def test_a_folder_with_a_run_is_kept_unless_it_may_be_overwritten(place: Place, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "out"
    (output / "model").mkdir(parents=True)
    for name in ("model/config.json", "metrics.jsonl", "summary.json", "notes.txt"):
        (output / name).write_text("mine", encoding="utf8")
    before = contents(output)
    ended = run(place.words(output))
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "already holds" in ended.mistakes[0] and "--overwrite_output_dir" in ended.mistakes[0]
    assert contents(output) == before

    words = place.words(output, "--overwrite_output_dir", "--max_steps", "1", "--calibration_steps", "1")
    assert run([*words, "--report", "false"]).status == 0
    after = contents(output)
    assert [name for name in after if after[name] == b"mine"] == ["notes.txt"]
    assert {"model/config.json", "metrics.jsonl", "summary.json", "config.yaml"} <= after.keys()


def test_a_file_size_limit_leaves_no_model(place: Place, tmp_path: Path, run: Run) -> None:
    """The same where nothing can be mounted. Python ignores SIGXFSZ: writing past the limit is an error."""
    output, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    words = place.words(output, "--max_steps", "1", "--calibration_steps", "1")
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        ended = run(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "cannot write the model to" in ended.mistakes[0] and "File too large" in ended.mistakes[0]
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-1", "config.yaml", "metrics.jsonl"]
