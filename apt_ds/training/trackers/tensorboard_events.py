"""Writes TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apt_ds.training.trackers.tracker import Ended, TrackedRun

RESULT = "summary/after/held_out_loss"  # the metric that TensorBoard's table of hyperparameters shows


class TensorBoardTracker:
    """Event files in `--logging_dir`. A resumed run hides what it repeats of the interrupted run."""

    def start(self, run: TrackedRun) -> str:
        """Open an event file and write the options. Returns '': the folder identifies the run."""
        import numpy as np
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self._as_array = np.asarray
        purge = {"purge_step": run.step + 1} if run.step else {}
        self._writer: Any = SummaryWriter(log_dir=str(run.folder), **purge)
        files: Any = self._writer.file_writer
        self._files = files
        experiment, started, self._ended = hparams(dict(run.configuration), {RESULT: 0.0})
        for summary in (experiment, started):
            self._files.add_summary(summary)
        lines = "\n".join(f"    {name}: {value}" for name, value in run.configuration.items())
        self._writer.add_text("run", f"{run.name}\n\n{lines}", run.step)
        self._writer.flush()
        return ""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def histograms(self, step: int, values: Mapping[str, list[int]]) -> None:
        """Write one histogram for each list."""
        for name, numbers in values.items():
            self._writer.add_histogram(name, self._as_array(numbers), step)

    def finish(self, table: Mapping[str, float], text: str, ended: Ended) -> None:
        """Write the final table and close the file."""
        for name, value in table.items():
            self._writer.add_scalar(f"summary/{name}", value)
        if text:
            self._writer.add_text("summary", "\n".join(f"    {line}" for line in text.splitlines()))
        if ended == "finished":
            self._files.add_summary(self._ended)
        self._writer.close()
