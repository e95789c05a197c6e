"""What a run shows while it trains: `metrics.jsonl`, a progress bar, lines on stderr, and experiment trackers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor
from tqdm import tqdm

from apt_ds.config.errors import UserError
from apt_ds.pruning.surgery import Plan
from apt_ds.runtime import collectives, notices
from apt_ds.training.metrics_schema import MetricsLine
from apt_ds.training.trackers import Trackers
from apt_ds.training.trackers.tracker import Ended


class MetricsLogger:
    """Metrics file, progress bar and trackers on the first rank. The other ranks write nothing.

    Attributes:
        folder: the run's output folder.
        failure: why a line could not be written. The run ends at the next step boundary, on all ranks.
    """

    def __init__(self, folder: Path, total_steps: int, quiet: bool = False, trackers: Trackers | None = None) -> None:
        self.folder, self._trackers = folder, trackers
        # a service may have no stderr
        self._total, self._quiet = total_steps, quiet or not collectives.is_main() or sys.stderr is None
        self._writes = collectives.is_main()
        self._warnings: list[str] = []  # since the last line
        self._unwritten = b""  # whole lines that the file lacks since `failure`
        self.failure: UserError | None = None

    @cached_property
    def _file(self) -> TextIO:
        # opened with the first line: a mistake found while the model loads must leave no folder
        return (self.folder / "metrics.jsonl").open("a", encoding="utf8")

    @cached_property
    def _bar(self) -> tqdm:
        # shown with the first line: a mistake found while the model loads has a line of its own
        return tqdm(total=self._total, unit="step", disable=self._quiet, file=sys.stderr, smoothing=0.1)

    def step(self, line: MetricsLine) -> None:
        """Write one line of metrics, report it and move the bar to its step. See `failure`."""
        if not self._writes:
            return
        loss = line["loss"] if line["loss"] is not None else math.nan
        # JSON has no NaN
        written = {**line, "loss": loss if math.isfinite(loss) else None}
        if self._warnings:
            written["warnings"], self._warnings = self._warnings, []
        self._append(json.dumps(written) + "\n")
        self._track(line["step"], "train", line)
        kept, ranks = f"{100 * line['kept']:.1f}%", f"{line['ranks']['mean']:.1f}"
        self._bar.set_postfix(loss=f"{loss:.3f}", kept=kept, ranks=ranks)
        self._bar.update(line["step"] - self._bar.n)

    def _append(self, text: str) -> None:
        """Write a line, or keep it where the file cannot be written."""
        try:
            if self.failure is None:
                self._file.write(text)
                self._file.flush()
                return
        except OSError as error:
            reason = f"cannot write {self.folder / 'metrics.jsonl'}: {error.strerror}"
            self.failure = UserError(f"{reason}. Free some space and go on with --resume_from_checkpoint last")
        self._unwritten += text.encode()

    def metrics(self) -> bytes:
        """All lines so far. On the first rank."""
        content = (self.folder / "metrics.jsonl").read_bytes()
        # a failure may have left a part of a line
        return content[: content.rfind(b"\n") + 1] + self._unwritten

    def check(self) -> None:
        """Raise UserError if a line could not be written."""
        if self.failure is not None:
            raise self.failure

    def adjusted(self, step: int, kept: float, plan: Plan) -> None:
        """Report a cut or rank growth after `step` updates. kept: fraction of the prunable parameters."""
        if not self._bar.disable:
            grown = f"; {len(plan.grow)} adapters grew" if plan.grow else ""
            self._bar.write(f"step {step}: {100 * kept:.2f} % of the prunable parameters kept{grown}", file=sys.stderr)

    def evaluated(self, step: int, figures: Mapping[str, Any]) -> None:
        """Report an evaluation after `step` updates to the trackers."""
        if self._writes:
            self._track(step, "eval", figures)

    def layers(self, step: int, values: Mapping[str, list[int]]) -> None:
        """Report one number for each layer or adapter, by name, after `step` updates to the trackers."""
        if self._trackers is not None:
            self._trackers.histograms(step, values)

    def finish_trackers(self, summary: Mapping[str, Any], text: str, ended: Ended) -> None:
        """Close the trackers. See `Trackers.finish`."""
        if self._trackers is not None:
            self._trackers.finish(summary, text, ended)

    def _track(self, step: int, prefix: str, values: Mapping[str, Any]) -> None:
        if self._trackers is None:
            return
        self._trackers.scalars(step, prefix, values)
        for failure in self._trackers.take_failures():
            self.warn(failure)

    def warn(self, text: str) -> None:
        """Write one line on stderr. The next line of metrics and the summary have it too."""
        self.say(text)
        if self._writes:
            self._warnings.append(text)
            notices.keep(text)

    def say(self, text: str) -> None:
        """Write one line on stderr."""
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def state_dict(self) -> tuple[list[str], dict[str, Tensor]]:
        """The warnings that the next line of metrics will have. No tensors."""
        return list(self._warnings), {}

    def load_state_dict(self, values: list[str], tensors: dict[str, Tensor]) -> None:
        """Take over `state_dict`."""
        self._warnings = [*values, *self._warnings]

    def close(self) -> None:
        """Close bar and file."""
        self._bar.close()
        if "_file" in vars(self):
            # after a failure the buffer still holds what could not be written
            with suppress(OSError) if self.failure is not None else nullcontext():
                self._file.close()
