"""Reports to Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping

from apt_ds.training.trackers.tracker import Ended, TrackedRun

PROJECT = "apt_ds"
FINISH_SECONDS = 60.0  # how long the end of a run waits for an upload
STATUS = {"finished": 0, "stopped": 0, "failed": 1}
STEP = "train/step"  # W&B's own step only goes up, while a resumed run repeats steps


class WandbTracker:
    """One run of W&B. Its environment variables decide project, mode, folder and account."""

    def start(self, run: TrackedRun) -> str:
        """Start or resume the run. Returns its id."""
        import wandb

        self._histogram = wandb.Histogram
        run.folder.mkdir(parents=True, exist_ok=True)
        # the metadata of W&B has the command line
        settings = wandb.Settings(console="off", finish_timeout=FINISH_SECONDS, x_disable_meta=run.secrets)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            config=dict(run.configuration),
            id=run.resumes or None,
            resume="allow" if run.resumes else None,
            settings=settings,
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP, step_sync=True)
        return str(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of one step."""
        self._run.log({**values, STEP: step})

    def histograms(self, step: int, values: Mapping[str, list[int]]) -> None:
        """Log one histogram for each list."""
        self._run.log({**{name: self._histogram(numbers) for name, numbers in values.items()}, STEP: step})

    def finish(self, table: Mapping[str, float], text: str, ended: Ended) -> None:
        """Write the final table to the run's summary and wait for the upload."""
        self._run.summary.update({**{f"summary/{name}": value for name, value in table.items()}, "summary/text": text})
        self._run.finish(exit_code=STATUS[ended])
