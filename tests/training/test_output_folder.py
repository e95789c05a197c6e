"""An output folder is checked before it is made, and leaves no trace of a run that did nothing."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.training.checkpoint import Checkpoint, find
from apt_ds.training.output_folder import check_output, discard_output, prepare_output
from tests.support.paths import ROOT


def run_into(folder: Path, *flags: str) -> RunConfig:
    place = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--output_dir", str(folder)]
    return resolve(["--preset", "quickstart", *place, *flags])


def saved(output: Path) -> Checkpoint:
    """A checkpoint of the run in `output`."""
    return Checkpoint(3, {}, {}, {}, {}, {}, metrics=b"{}\n", path=str(output / "checkpoint-3"))


def test_a_run_that_did_nothing_leaves_no_folder(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b"
    new_folders = check_output(run_into(output))
    assert new_folders == [output, output.parent] and not output.parent.exists()
    prepare_output(run_into(output))
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "metrics.jsonl"]
    discard_output(output, new_folders)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "notes.txt"])
def test_a_folder_with_content_stays(name: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    new_folders = check_output(run_into(output))
    prepare_output(run_into(output))
    (output / name).write_text("a line\n")
    discard_output(output, new_folders)
    assert (output / name).read_text() == "a line\n" and (output / "config.yaml").exists()


def test_content_is_refused_unless_it_may_be_overwritten_or_resumed(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"already holds summary\.json; choose another folder or pass"):
        check_output(run_into(tmp_path, "--overwrite_output_dir", "false"))
    assert check_output(run_into(tmp_path, "--overwrite_output_dir", "false"), saved(tmp_path)) is None
    assert check_output(run_into(tmp_path, "--overwrite_output_dir")) is None


def test_a_checkpoint_of_another_run_excuses_no_content(tmp_path: Path) -> None:
    output, other = tmp_path / "b", saved(tmp_path / "a")
    assert check_output(run_into(output, "--overwrite_output_dir", "false"), other) == [output]
    (output / "checkpoint-6").mkdir(parents=True)
    with pytest.raises(UserError, match="already holds checkpoint-6"):
        check_output(run_into(output, "--overwrite_output_dir", "false"), other)
    assert check_output(run_into(output, "--overwrite_output_dir"), other) is None
    prepare_output(run_into(output), other)
    # none of the run before is left beside the one that goes on
    assert sorted(p.name for p in output.iterdir()) == ["config.yaml", "metrics.jsonl"]
    assert (output / "metrics.jsonl").read_bytes() == other.metrics


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize(
    ("flag", "place", "value"),
    [
        ("model_name_or_path", "base", "{}"),
        ("model_name_or_path", "model", "{}"),
        ("init_adapters", "adapters", "{}"),
        ("mmlu_path", "checkpoint-3/mmlu", "{}"),
        ("mmlu_path", "left-checkpoint-3/mmlu", "{}"),
        ("data_path", "adapters/train.json", "{}:0.5,other.json:0.5"),
        ("eval_data_path", "model/eval.json", "{}"),
        ("perplexity_path", "base/text.txt", "{}[50%:]"),
    ],
)
def test_nothing_that_the_run_reads_is_removed(
    flag: str, place: str, value: str, resumes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("read") if path.suffix else path.mkdir()
    # another name of the same place
    monkeypatch.chdir(tmp_path)
    run = run_into(Path("."), "--overwrite_output_dir", f"--{flag}", value.format(path))
    with pytest.raises(UserError, match=f"--{flag} '.*{path.name}' lies where this run would remove it"):
        check_output(run, saved(tmp_path) if resumes else None)
    assert path.exists()


def test_what_no_run_removes_may_lie_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    run = run_into(tmp_path, "--overwrite_output_dir", "--model_name_or_path", str(tmp_path / "mine"))
    assert check_output(run) is None


def test_only_the_files_of_runs_are_replaced(tmp_path: Path) -> None:
    for name in ("checkpoint-3", "model", "model-fp8", "model-nf4.tmp", "mine"):
        (tmp_path / name).mkdir()
    prepare_output(run_into(tmp_path), saved(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-3", "config.yaml", "metrics.jsonl", "mine"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"{}\n"
    prepare_output(run_into(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl", "mine"]


def test_the_configuration_names_the_command_and_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--sparsity", "0.4"])
    (tmp_path / "report.html").write_text("of an earlier run")
    run = run_into(tmp_path, "--sparsity", "0.4")
    prepare_output(run)
    text = (tmp_path / "config.yaml").read_text(encoding="utf8")
    assert text.startswith("# command: train.py --sparsity 0.4\n")
    assert resolve(["--config", str(tmp_path / "config.yaml")]).flags() == run.flags()
    assert not (tmp_path / "report.html").exists()


def test_a_run_that_goes_back_sets_later_checkpoints_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 3, 4, 5):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "a").write_text(str(step))
    (tmp_path / "left-checkpoint-5").symlink_to(tmp_path / "elsewhere")
    prepare_output(run_into(tmp_path), saved(tmp_path))
    there = {path.name for path in tmp_path.iterdir() if "checkpoint" in path.name}
    asides = {"left-checkpoint-4", "left-checkpoint-5", "left-checkpoint-5-2"}
    assert there == {"checkpoint-2", "checkpoint-3", *asides}
    assert (tmp_path / "left-checkpoint-5-2" / "a").read_text() == "5"
    line = f"the run goes on from step 3: {tmp_path / 'checkpoint-4'} is now left-checkpoint-4"
    assert line in capsys.readouterr().err
    prepare_output(run_into(tmp_path), saved(tmp_path))
    assert {path.name for path in tmp_path.iterdir() if "checkpoint" in path.name} == there
    with pytest.raises(UserError, match="was left by a run that went back: rename it to checkpoint-STEP"):
        find(str(tmp_path / "left-checkpoint-4"), tmp_path)
    (tmp_path / "left-checkpoint-5").unlink()
    prepare_output(run_into(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl"]


def test_a_checkpoint_that_cannot_be_renamed_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("checkpoint-3", "checkpoint-4", "model"):
        (tmp_path / name).mkdir()

    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match=r"cannot be written: Permission denied$"):
        prepare_output(run_into(tmp_path), saved(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4", "model"]


def test_only_left_checkpoints_are_refused_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        find(str(tmp_path / "left-hand"), tmp_path)
    assert "went back" not in str(refusal.value)


def test_a_link_to_another_disk_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "disk" / "model" / "a").write_text("a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").symlink_to(tmp_path / "disk" / "model")
    prepare_output(run_into(tmp_path / "out"))
    assert (tmp_path / "disk" / "model" / "a").exists() and not (tmp_path / "out" / "model").is_symlink()
