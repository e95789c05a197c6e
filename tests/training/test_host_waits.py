"""A training step makes the host wait for the device once, to read the step's own sums."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from apt_ds.config.resolve import resolve
from apt_ds.eval.held_out import perplexity
from apt_ds.losses import token_losses
from apt_ds.pruning.surgery import Plan
from apt_ds.training import run as training_run
from apt_ds.training import trainer
from apt_ds.training.trainer import Trainer
from tests.support import tiny
from tests.support.host_waits import Device, watched
from tests.support.launcher import Place, own_world

GRADUAL = ["--pruning", "gradual", "--sparsity", "0.3"]
MODES = {
    "plain": ["--pruning", "none"],
    "scoring": [*GRADUAL, "--prune_blocks", "heads,neurons,hidden"],
    "batch product": [*GRADUAL, "--salience_product", "batch"],
    "packed": [*GRADUAL, "--packing", "true"],
    "distilling": [*GRADUAL, "--distill", "true", "--layer_match", "previous"],
    "tracked": [*GRADUAL, "--report_to", "tensorboard"],
    "checkpointing": [*GRADUAL, "--gradient_checkpointing", "true"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("waits")
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.save_data(folder / "data.json", 16)
    with own_world():
        yield Place(folder)


def prepared(place: Place, *flags: str, **files: str) -> Trainer:
    """A run after two steps."""
    words = ["--max_steps", "8", "--save_steps", "0", "--gradient_accumulation_steps", "2", "--prune_every", "100"]
    words += ["--overwrite_output_dir", "--mask_step", "0.25"]
    run = training_run.prepare(resolve(place.words(place.folder / "out", *words, *flags, **files)))
    for step in range(2):
        run.train_step(step)
        run.adjust(step + 1)
    return run


@contextmanager
def watched_run(run: Trainer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """All that a run has on its device is watched. The run ends."""
    known = [value for value in vars(run.pruner.scorer).values() if isinstance(value, torch.Tensor)]
    with watched(monkeypatch, run.engine.module, known) as device:
        yield device
    run.finish()
    run.metrics_logger.close()
    run.metrics_logger.finish_trackers({}, "", "finished")


def own(device: Device) -> list[str]:
    """Where this project or transformers waits."""
    return [wait.where.rpartition("/")[2].partition(":")[0] for wait in device.waits if "/deepspeed/" not in wait.where]


@pytest.mark.parametrize("mode", MODES)
def test_a_step_waits_once(place: Place, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    run = prepared(place, *MODES[mode])
    with watched_run(run, monkeypatch) as device:
        run.train_step(2)
    assert own(device) == ["step_sums.py"]
    # DeepSpeed's look at the norm of the gradients, by which it skips a step that is not finite
    others = [wait for wait in device.waits if "/deepspeed/" in wait.where]
    assert len(others) <= 2 and {wait.where.rpartition("/")[2].partition(":")[0] for wait in others} <= {"utils.py"}


@pytest.mark.parametrize(("mode", "first"), [("plain", "utils.py"), ("scoring", "step_sums.py")])
def test_an_update_without_scores_begins_before_the_host_waits(
    place: Place, monkeypatch: pytest.MonkeyPatch, mode: str, first: str
) -> None:
    """DeepSpeed's wait comes first then. With scores it comes last: they are of the weights before the update."""
    run = prepared(place, *MODES[mode], "--max_grad_norm", "1")
    with watched_run(run, monkeypatch) as device:
        run.train_step(2)
    assert device.waits[0].where.rpartition("/")[2].partition(":")[0] == first


def test_layers_matched_in_the_same_step_wait_once_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mapping of layers decides the loss, so that the host needs the distances before the sums."""
    run = prepared(place, *MODES["distilling"], "--layer_match", "step")
    with watched_run(run, monkeypatch) as device:
        run.train_step(2)
    assert own(device) == ["distillation.py", "step_sums.py"]


def test_gates_copy_their_gradients_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are on the host. The copy follows the step's wait, so that the device has no work then."""
    run = prepared(place, *GRADUAL, "--score", "l0", "--gate_learning_rate", "2")
    with watched(monkeypatch, run.engine.module, [run.pruner.scorer.abs_sums]) as device:
        run.train_step(2)
    assert own(device) == ["step_sums.py", "l0_gates.py"]
    run.finish()
    run.metrics_logger.close()


def test_a_decision_copies_the_scores_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(place, *MODES["scoring"])
    run.train_step(2)
    with watched_run(run, monkeypatch) as device:
        run.adjust(3)
        run.train_step(3)
    assert own(device) == ["salience.py", "step_sums.py"]


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_an_evaluation_waits_once(place: Place, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    run = prepared(place, *MODES["plain"], "--per_device_eval_batch_size", "1")
    evaluator, engine = run.evaluations.evaluator, run.engine
    with watched_run(run, monkeypatch) as device:
        if metric == "loss":
            assert evaluator.loss(engine) > 0
        else:
            assert perplexity(engine, torch.ones(4, 8, dtype=torch.int64), 1, torch.device("cpu")) > 1
    assert own(device) == ["held_out.py"]


def test_a_rebuild_is_measured_to_the_end_of_the_devices_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of its ends ask the device to finish, and a step does not."""
    run, events = prepared(place, *MODES["scoring"]), []
    monkeypatch.setattr(trainer, "seconds_after", lambda device: events.append("finish") or time.perf_counter())
    original = trainer.rebuild.rebuild

    def rebuilt(*arguments: Any) -> None:
        events.append("rebuild")
        original(*arguments)
        time.sleep(0.05)

    monkeypatch.setattr(trainer.rebuild, "rebuild", rebuilt)
    run.train_step(2)
    assert events == []
    run.rebuild(3, Plan())
    assert events == ["finish", "rebuild", "finish"] and run.meter.rebuilds[-1] >= 0.05
    run.finish()
    run.metrics_logger.close()


def test_what_transformers_looks_at_would_be_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the host knows of the rows, every micro-batch waits."""
    run = prepared(place, *MODES["plain"])
    monkeypatch.setattr(token_losses, "known_rows", lambda packed, padded: nullcontext())
    with watched_run(run, monkeypatch) as device:
        run.train_step(2)
    assert own(device) == ["masking_utils.py", "masking_utils.py", "step_sums.py"]


def test_a_look_at_a_loss_would_be_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(place, *MODES["plain"])
    original = run.training_loss.micro_batch_loss

    def looked_at(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, loss_sum = original(*arguments)
        assert float(loss_sum) > 0 and loss_sum.item() == loss_sum.tolist() == loss_sum.cpu().item()
        return loss, loss_sum

    monkeypatch.setattr(run.training_loss, "micro_batch_loss", looked_at)
    with watched_run(run, monkeypatch) as device:
        run.train_step(2)
    assert [wait.op for wait in device.waits[:4]] == ["_local_scalar_dense", "_local_scalar_dense", "tolist", "cpu"]
    assert own(device) == 8 * ["test_host_waits.py"] + ["step_sums.py"]
