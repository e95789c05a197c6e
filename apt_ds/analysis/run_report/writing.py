"""Writes the report of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from apt_ds.analysis.run_report.content import read
from apt_ds.analysis.run_report.page import render
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import collectives
from apt_ds.runtime.files import write_text
from apt_ds.training.output_folder import REPORT

EXTRA = "pip install 'apt_ds[report]'"


def write(folder: str | Path) -> Path:
    """Write the report of a run into its output folder, whole or not at all. Returns the file.

    Raises:
        UserError: plotly is not installed, the folder is no run's, or the file cannot be written.
    """
    content = read(folder)
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise UserError(f"{REPORT} requires plotly: {EXTRA}") from None
    path = content.folder / REPORT
    write_text(path, render(content, get_plotlyjs()))
    return path


def write_after_run(run: RunConfig) -> None:
    """Write the report of a finished run on rank 0 and print its path.

    A failure is one line on stderr: the run has written its model by then.
    """
    if not run.output.run_report or not collectives.is_main():
        return
    try:
        print(f"report: {write(run.output.output_dir)}", flush=True)
    except UserError as error:
        print(f"no run report: {error}", file=sys.stderr, flush=True)
    except Exception as error:
        text = f"no run report: {type(error).__name__}: {error}. Model and summary.json are written"
        print(text, file=sys.stderr, flush=True)
