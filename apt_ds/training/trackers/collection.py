"""All trackers of one run."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import SECRETS, RunConfig
from apt_ds.runtime import collectives
from apt_ds.runtime.files import write_json
from apt_ds.training.trackers.background import Background, short_reason
from apt_ds.training.trackers.mlflow_run import MlflowTracker
from apt_ds.training.trackers.tensorboard_events import TensorBoardTracker
from apt_ds.training.trackers.tracker import Ended, TrackedRun, Tracker
from apt_ds.training.trackers.wandb_run import WandbTracker

IDS = "trackers.json"  # in the output folder: the id of the run by tracker, for a resumed run
FOLDER = "runs"  # in the output folder: local files of trackers
CLOSE_SECONDS = 120.0  # how long the end of a run waits for a tracker
SHORT_SECONDS = 15.0  # the same for a run that fails or is asked to stop
MAKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}


class Trackers:
    """Passes what a run reports to each tracker of `--report_to`. Ranks other than the first have none.

    A tracker that fails gets no more calls. `take_failures` says so once, and the run goes on.
    """

    def __init__(self, run: RunConfig, makers: Mapping[str, Callable[[], Tracker]] = MAKERS) -> None:
        self.run_config = run
        names = run.output.trackers if collectives.is_main() else ()
        self._trackers: dict[str, Tracker] = {name: makers[name]() for name in names}
        self._background: dict[str, Background] = {}
        self._reported: set[str] = set()

    def start(self, step: int) -> None:
        """Open the run in each tracker, before the run's next step. On the first rank. The output folder must exist.

        Args:
            step: optimizer steps that the run has done.

        Raises:
            UserError: a tracker cannot start.
        """
        ids = self._saved_ids()
        for name, tracker in self._trackers.items():
            try:
                ids[name] = tracker.start(self._describe(step, ids.get(name, "")))
            except Exception as error:
                self.finish({}, "", "failed")
                raise UserError(
                    f"--report_to {name} cannot start: {short_reason(error)}. Correct that, or remove {name} "
                    "from --report_to"
                ) from None
            self._background[name] = Background(name)
        if ids:
            write_json(self._ids_file, ids)

    def scalars(self, step: int, prefix: str, values: Mapping[str, Any]) -> None:
        """Report the numbers of a nested dictionary after `step` updates, under names such as `prefix/ranks/mean`."""
        numbers = flatten(values, prefix)
        numbers.pop(f"{prefix}/step", None)
        for name, background in self._background.items():
            background.submit(lambda to=self._trackers[name]: to.scalars(step, numbers))  # type: ignore[misc]

    def histograms(self, step: int, values: Mapping[str, list[int]]) -> None:
        """Report one number for each layer or adapter, by name, after `step` updates."""
        copied = {name: list(numbers) for name, numbers in values.items() if numbers}
        for name, background in self._background.items():
            background.submit(lambda to=self._trackers[name]: to.histograms(step, copied))  # type: ignore[misc]

    def take_failures(self) -> list[str]:
        """One line for each tracker that has failed since the last call."""
        failed = [name for name, one in self._background.items() if one.failure and name not in self._reported]
        self._reported.update(failed)
        return [
            f"--report_to {name} failed: {self._background[name].failure}. The run goes on without {name}"
            for name in failed
        ]

    def finish(self, summary: Mapping[str, Any], text: str, ended: Ended) -> None:
        """Close all trackers and report what failed. A second call does nothing.

        Args:
            summary: the content of `summary.json`. Empty where the run wrote none.
            text: the table that the run ends with.
            ended: how the run ended.
        """
        table = flatten(summary, "", depth=2)
        for name, background in self._background.items():
            background.submit(lambda to=self._trackers[name]: to.finish(table, text, ended))  # type: ignore[misc]
        for background in self._background.values():
            background.close(CLOSE_SECONDS if ended == "finished" else SHORT_SECONDS)
        for line in self.take_failures():
            print(line, file=sys.stderr, flush=True)
        self._background = {}

    def _describe(self, step: int, resumes: str) -> TrackedRun:
        output = self.run_config.output
        folder = Path(output.output_dir)
        return TrackedRun(
            name=output.run_name or folder.absolute().name,
            folder=Path(output.logging_dir) if output.logging_dir else folder / FOLDER,
            configuration=self.run_config.flags(),
            step=step,
            resumes=resumes,
            secrets=any(word.startswith(f"--{name}") for word in sys.argv for name in SECRETS),
        )

    @property
    def _ids_file(self) -> Path:
        return Path(self.run_config.output.output_dir) / IDS

    def _saved_ids(self) -> dict[str, str]:
        """The ids of an interrupted run. A file that cannot be read counts as none: the tracker starts a new run."""
        try:
            return dict(json.loads(self._ids_file.read_text(encoding="utf8")))
        except (OSError, ValueError, TypeError):
            return {}


def flatten(values: Mapping[str, Any], prefix: str, depth: int = 9) -> dict[str, float]:
    """The finite numbers of a nested dictionary, by their path. Lists, texts and truth values are left out.

    Args:
        values: the dictionary.
        prefix: what each path begins with.
        depth: how many keys a path may have. Deeper numbers are left out.
    """
    numbers: dict[str, float] = {}
    for key, value in values.items():
        # MLflow refuses the brackets and per cent signs that the name of a text may have
        key = re.sub(r"[^\w./ :-]", "_", key)
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            numbers |= flatten(value, path, depth - 1) if depth > 1 else {}
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            numbers[path] = value
    return numbers
