"""Trackers get what a run reports: read back from TensorBoard, W&B and MLflow. A broken tracker ends no run."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import RunConfig
from apt_ds.runtime import collectives
from apt_ds.training.trackers import TrackedRun, Trackers, check_installed, collection, installed
from apt_ds.training.trackers.background import Background
from apt_ds.training.trackers.collection import flatten
from apt_ds.training.trackers.tensorboard_events import TensorBoardTracker
from tests.support import wandb_file
from tests.support.launcher import GRADUAL, Place, Run
from tests.support.paths import ROOT

STEPS = 4


def events(folder: Path) -> Any:
    """TensorBoard's own reader of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()


def words(place: Place, output: Path, *more: str) -> list[str]:
    """A short run that prunes, and grows ranks."""
    return place.words(output, *GRADUAL, "--max_steps", str(STEPS), "--report", "false", *more)


def configured(output: Path, *flags: str) -> RunConfig:
    return resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--output_dir", str(output), *flags])


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf8").splitlines()]


def test_a_run_is_read_back_from_tensorboard_and_wandb(
    place: Place, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "out"
    more = ["--report_to", "tensorboard,wandb", "--run_name", "try", "--hub_token", "hf_secret", "--eval_steps", "2"]
    ended = run(words(place, output, *more))
    assert ended.status == 0, ended.err
    metrics = lines_of(output)
    summary = json.loads((output / "summary.json").read_text(encoding="utf8"))

    board = events(output / "runs")
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in metrics
    ]
    assert [event.value for event in board.Scalars("train/ranks/mean")] == [line["ranks"]["mean"] for line in metrics]
    losses = [(event.step, event.value) for event in board.Scalars("eval/held_out_loss")]
    assert losses == [(0, pytest.approx(summary["before"]["held_out_loss"])), (STEPS, pytest.approx(losses[1][1]))]
    assert losses[1][1] == pytest.approx(summary["after"]["held_out_loss"])
    assert [event.step for event in board.Scalars("eval/score")] == [2, 4]
    kept = board.Histograms("kept/neurons")
    assert kept[0].step == 0 and kept[0].histogram_value.sum == 2 * 48
    sizes = summary["pruning"]["sizes"]["neurons"]
    assert kept[-1].histogram_value.sum == (sum(sizes) if isinstance(sizes, list) else 2 * sizes)
    assert board.Histograms("ranks")[-1].histogram_value.num > 0
    assert board.Scalars("summary/after/parameters")[0].value == summary["after"]["parameters"]
    assert {"summary/text_summary", "run/text_summary", "_hparams_/session_start_info"} <= {
        *board.Tags()["tensors"],
        *board.summary_metadata,
    }

    (file,) = (output / "runs" / "wandb").glob("offline-run-*/*.wandb")
    history = wandb_file.history(file)
    assert [(row["train/step"], row["train/loss"]) for row in history if "train/loss" in row] == [
        (line["step"], line["loss"]) for line in metrics
    ]
    assert [row["train/step"] for row in history if "eval/held_out_loss" in row] == [0, STEPS]
    drawn = [row for row in history if row.get("kept/neurons/_type") == "histogram"]
    assert [row["train/step"] for row in drawn] == [event.step for event in kept]
    assert sum(drawn[0]["kept/neurons/values"]) == 2
    assert wandb_file.summary(file)["summary/after/parameters"] == summary["after"]["parameters"]
    given = wandb_file.configuration(file)
    assert given["sparsity"] == 0.4 and given["run_name"] == "try" and "hub_token" not in given
    assert wandb_file.exit_code(file) == 0
    assert json.loads((output / "trackers.json").read_text()) == {"tensorboard": "", "wandb": wandb_file.run_id(file)}

    texts = [path for path in output.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert texts == []


class Reports:
    """A run that reports two steps to MLflow or TensorBoard, without any training."""

    def __init__(self, output: Path, name: str) -> None:
        output.mkdir(exist_ok=True)
        self.run = configured(output, "--report_to", name)

    def report(self, step: int, steps: range, finish: bool) -> Trackers:
        """Report the steps of `steps` as a run that has done `step` steps, and maybe end."""
        trackers = Trackers(self.run)
        trackers.start(step)
        for number in steps:
            trackers.scalars(number, "train", {"step": number, "loss": 1.0 / number, "ranks": {"mean": 2}})
            trackers.histograms(number, {"ranks": [number, 8]})
        summary = {"after": {"parameters": 5, "held_out_loss": 2.0}, "note": "a text"}
        trackers.finish(summary if finish else {}, "the table", "finished" if finish else "stopped")
        return trackers


def test_a_resumed_run_goes_on_in_tensorboard(tmp_path: Path) -> None:
    """What the interrupted run reported after its checkpoint is replaced."""
    pytest.importorskip("tensorboard")
    reports = Reports(tmp_path / "out", "tensorboard")
    reports.report(0, range(1, 5), finish=False)
    reports.report(2, range(3, 7), finish=True)
    board = events(tmp_path / "out" / "runs")
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_mlflow_is_read_back_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    reports = Reports(tmp_path / "out", "mlflow")
    reports.report(0, range(1, 3), finish=False)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "out" / "runs" / "mlruns").as_uri())
    identity = json.loads((tmp_path / "out" / "trackers.json").read_text())["mlflow"]
    assert client.get_run(identity).info.status == "KILLED"
    reports.report(2, range(3, 5), finish=True)
    (stored,) = client.search_runs([client.get_experiment_by_name("apt_ds").experiment_id])
    assert (stored.info.run_id, stored.info.status, stored.info.run_name) == (identity, "FINISHED", "out")
    assert [(m.step, m.value) for m in client.get_metric_history(identity, "train/loss")] == [
        (step, 1.0 / step) for step in range(1, 5)
    ]
    assert stored.data.params["sparsity"] == "0.3" and stored.data.metrics["summary/after/parameters"] == 5
    artifacts = tmp_path / "out" / "runs" / "mlruns"
    assert sorted(path.name for path in artifacts.rglob("step-*.json")) == [f"step-{n:08d}.json" for n in range(1, 5)]
    (table,) = artifacts.rglob("summary.txt")
    assert table.read_text() == "the table"


class Breaks(TensorBoardTracker):
    """A tracker that is down from the second step on."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Fail after the first step."""
        if step > 1:
            raise ConnectionError("no route to the\ntracker")
        super().scalars(step, values)


def test_a_tracker_that_breaks_in_the_middle_ends_no_run(
    place: Place, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(collection.MAKERS, "tensorboard", Breaks)  # type: ignore[arg-type]
    ended = run(words(place, tmp_path / "out", "--report_to", "tensorboard"))
    assert ended.status == 0, ended.err
    lines = [line for line in ended.err.splitlines() if "--report_to tensorboard failed" in line]
    assert len(lines) == 1 and "no route to the tracker. The run goes on without tensorboard" in lines[0]
    assert len(lines_of(tmp_path / "out")) == STEPS and (tmp_path / "out" / "model" / "config.json").exists()
    assert [event.step for event in events(tmp_path / "out" / "runs").Scalars("train/loss")] == [1]


def test_a_tracker_that_cannot_start_is_one_line(place: Place, tmp_path: Path, run: Run) -> None:
    """Nothing has been trained, and the output folder is gone."""

    class Refuses(TensorBoardTracker):
        def start(self, run: TrackedRun) -> str:
            super().start(run)
            raise RuntimeError("no account")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(collection.MAKERS, "tensorboard", Refuses)  # type: ignore[arg-type]
        ended = run(words(place, tmp_path / "out", "--report_to", "tensorboard"))
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "--report_to tensorboard cannot start: no account" in ended.mistakes[0]
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_is_not_installed_is_one_line(
    place: Place, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(installed, "find_spec", absent)
    ended = run(words(place, tmp_path / "out", "--report_to", "wandb"))
    assert ended.status == 2 and not (tmp_path / "out").exists()
    assert ended.mistakes == [
        "error: --report_to wandb needs the package wandb: pip install 'apt_ds[tracking]', or remove wandb from "
        "--report_to"
    ]
    check_installed(())


def test_other_ranks_have_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "is_main", lambda: False)
    trackers = Reports(tmp_path / "out", "tensorboard").report(0, range(1, 3), finish=True)
    assert trackers.take_failures() == [] and list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("value", ["none,wandb", "comet", "wandb,wandb"])
def test_wrong_lists_are_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--report_to"):
        configured(tmp_path, "--report_to", value)


def test_a_tracker_that_does_not_answer_delays_nothing() -> None:
    answer = threading.Event()
    background = Background("slow", pending=2)
    for _ in range(9):
        background.submit(lambda: answer.wait())  # type: ignore[func-returns-value]
    assert "does not answer" in background.failure
    other = Background("slow")
    other.submit(lambda: answer.wait())  # type: ignore[func-returns-value]
    other.close(0.05)
    assert "did not answer for 0.05 seconds" in other.failure
    answer.set()


def test_numbers_are_named_by_their_path() -> None:
    nested = {"loss": None, "a": {"b": 1, "c": math.nan, "d": [1]}, "note": "text", "flag": True, "e": 2.5}
    assert flatten(nested, "train") == {"train/a/b": 1, "train/e": 2.5}
    assert flatten(nested, "", depth=1) == {"e": 2.5}
    assert flatten({"c.txt[50%:]": 3.0}, "a") == {"a/c.txt_50_:_": 3.0}
