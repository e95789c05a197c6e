"""An output folder is checked before it is made, and leaves no trace of a run that did nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.training.output_folder import check_output, discard_output, prepare_output
from tests.support.paths import ROOT


def run_into(folder: Path, *flags: str) -> RunConfig:
    return resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--output_dir", str(folder), *flags])


def test_a_run_that_did_nothing_leaves_no_folder(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b"
    made = check_output(run_into(output), resumes=False)
    assert made == [output, output.parent] and not output.parent.exists()
    prepare_output(run_into(output))
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "metrics.jsonl"]
    discard_output(output, made)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "notes.txt"])
def test_a_folder_with_content_stays(name: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    made = check_output(run_into(output), resumes=False)
    prepare_output(run_into(output))
    (output / name).write_text("a line\n")
    discard_output(output, made)
    assert (output / name).read_text() == "a line\n" and (output / "config.yaml").exists()


def test_content_is_refused_unless_it_may_be_overwritten_or_resumed(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"already holds summary\.json; choose another folder or pass"):
        check_output(run_into(tmp_path, "--overwrite_output_dir", "false"), resumes=False)
    assert check_output(run_into(tmp_path), resumes=True) is None
    assert check_output(run_into(tmp_path, "--overwrite_output_dir"), resumes=False) is None


def test_only_the_files_of_runs_are_replaced(tmp_path: Path) -> None:
    for name in ("checkpoint-3", "model", "model-fp8", "model-nf4.tmp", "mine"):
        (tmp_path / name).mkdir()
    prepare_output(run_into(tmp_path), metrics=b"{}\n")
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
