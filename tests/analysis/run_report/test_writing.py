"""The report is written whole, or one line says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from apt_ds.analysis.run_report import __main__ as command
from apt_ds.analysis.run_report import writing
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from tests.support.report_content import finished, interrupted, save


def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plotly", "plotly.offline"):
        monkeypatch.setitem(sys.modules, name, None)


def test_the_command_writes_the_report_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    folder = save(interrupted(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["run_report", str(folder)])
    command.main()
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    text = (folder / "report.html").read_text(encoding="utf8")
    assert "Unfinished." in text and "plotly.js v" in text
    # no partial file stays
    assert not list(folder.glob("*.tmp"))
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report.html: "):
        command.main()
    assert not list(folder.glob("*.tmp"))


def test_a_run_without_plotly_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(finished(tmp_path / "out"))
    run = RunConfig(output_dir=str(folder))
    without_plotly(monkeypatch)
    writing.write_after_run(run)
    out, err = capsys.readouterr()
    assert out == "" and err == "no run report: report.html requires plotly: pip install 'apt_ds[report]'\n"
    writing.write_after_run(run.replace(run_report=False))
    assert capsys.readouterr() == ("", "") and not (folder / "report.html").exists()
    with pytest.raises(UserError, match=r"apt_ds\[report\]"):
        writing.write(folder)


def test_a_failure_of_the_report_is_no_failure_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    folder = save(finished(tmp_path / "out"))
    # a key that every version has is missing
    (folder / "summary.json").write_text('{"version": 1}', encoding="utf8")
    writing.write_after_run(RunConfig(output_dir=str(folder)))
    assert capsys.readouterr().err.startswith("no run report: KeyError: ")
