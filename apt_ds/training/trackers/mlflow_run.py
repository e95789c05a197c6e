"""Reports to MLflow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from apt_ds.training.trackers.tracker import Ended, TrackedRun

T = TypeVar("T")
EXPERIMENT = "apt_ds"
LONGEST = 500  # characters of a parameter, for old servers too
BATCH = 100  # parameters, or metrics, of one request
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker:
    """One run of MLflow. `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` decide where it goes.

    Without an address, the run goes to files in the folder of the trackers. MLflow has no histograms: numbers by layer
    are JSON artifacts.
    """

    def start(self, run: TrackedRun) -> str:
        """Start or resume the run. Returns its id."""
        address = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder.absolute() / "mlruns").as_uri()
        if address.startswith("file:"):
            # MLflow asks everyone who keeps runs in files to say so
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client: Any = MlflowClient(tracking_uri=address)
        if run.resumes:
            self._client.update_run(run.resumes, status="RUNNING")
            self._id = run.resumes
            return self._id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        existing = self._client.get_experiment_by_name(name)
        experiment = existing.experiment_id if existing is not None else self._client.create_experiment(name)
        self._id = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
        for part in batches([Param(name, str(value)[:LONGEST]) for name, value in run.configuration.items()]):
            self._client.log_batch(self._id, params=part)
        return self._id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of one step."""
        now = int(time.time() * 1000)
        for part in batches([self._metric(name, value, now, step) for name, value in values.items()]):
            self._client.log_batch(self._id, metrics=part)

    def histograms(self, step: int, values: Mapping[str, list[int]]) -> None:
        """Write the lists as a JSON artifact."""
        self._client.log_dict(self._id, dict(values), f"layers/step-{step:08d}.json")

    def finish(self, table: Mapping[str, float], text: str, ended: Ended) -> None:
        """Log the final table and end the run."""
        if table:
            self.scalars(0, {f"summary/{name}": value for name, value in table.items()})
        if text:
            self._client.log_text(self._id, text, "summary.txt")
        self._client.set_terminated(self._id, status=STATUS[ended])


def batches(values: Sequence[T]) -> Iterator[list[T]]:
    """The values in lists that one request takes."""
    for start in range(0, len(values), BATCH):
        yield list(values[start : start + BATCH])
