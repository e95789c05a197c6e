"""JSON files whose brackets are nested too deeply: one line, wherever a command reads one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from apt_ds.analysis import plots, result_table
from apt_ds.analysis.benchmark import read_measured
from apt_ds.analysis.run_report import content
from apt_ds.commands.push import saved_options
from apt_ds.config.errors import UserError
from apt_ds.eval.resume_file import ResumeFile
from apt_ds.models import peft_format
from apt_ds.models.export.facts import FILE, read_facts

NESTED = 200_000 * "["


def run_folder(path: Path) -> object:
    (path.parent / "config.yaml").write_text("rank: 4", "utf-8")
    return content.read(path.parent)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "answers": ("resume.json", lambda path: ResumeFile(path, {})),
    "benchmark": ("figures.json", lambda path: read_measured(str(path))),
    "adapters": ("base.json", peft_format.read_json),
    "facts": (FILE, lambda path: read_facts(path.parent)),
    "report": ("summary.json", run_folder),
}


@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS.keys())
def test_a_nested_file_is_one_line(name: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / name).write_text(NESTED, "utf-8")
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_nested_table_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table.json").write_text(NESTED, "utf-8")
    monkeypatch.setattr("sys.argv", ["plots", "--table", str(tmp_path / "table.json"), "--picture", "p.png"])
    with pytest.raises(UserError, match=r"table\.json' cannot be read"):
        plots.main()
    monkeypatch.setattr("sys.argv", ["result_table", "--folder", str(tmp_path)])
    with pytest.raises(UserError, match=r"table\.json cannot be read"):
        result_table.main()


def test_a_run_whose_options_cannot_be_read_states_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(5000 * "[", "utf-8")
    assert saved_options(tmp_path) == {}
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{NESTED}\n', "utf-8")
    (tmp_path / "config.yaml").write_text("rank: 4", "utf-8")
    assert content.read(tmp_path).unreadable == 1


def test_a_folder_of_a_report_that_cannot_exist_is_refused() -> None:
    with pytest.raises(UserError, match="is not the output folder of a run"):
        content.read(300 * "x")
