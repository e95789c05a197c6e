"""Steps whose loss is not finite: they change nothing, and too many in a row end the run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from apt_ds.config.resolve import resolve
from apt_ds.data.batching import Batch
from apt_ds.losses.token_losses import CausalLoss
from apt_ds.models import adapter
from apt_ds.runtime import zero
from apt_ds.training import run as training_run
from tests.support import tiny
from tests.support.launcher import GRADUAL, PRETUNING, Place, Run
from tests.support.paths import ROOT


def nonfinite_steps(text: str) -> list[int]:
    """The numbers of the steps reported as non-finite."""
    return [int(number) for number in re.findall(r"step (\d+): non-finite", text)]


@pytest.mark.parametrize("pruning", [PRETUNING, GRADUAL], ids=["pretuning", "gradual"])
def test_non_finite_losses_end_the_run(pruning: list[str], place: Place, tmp_path: Path, run: Run) -> None:
    model = tiny.model()
    model.lm_head.weight.data[7, 3] = math.inf
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    words = place.words(tmp_path / "out", *pruning, "--model_name_or_path", str(tmp_path / "model"))
    ended = run([*words, "--max_nonfinite_steps", "2"])
    assert ended.status == 2 and len(ended.mistakes) == 1
    assert "2 steps in a row had a non-finite loss" in ended.mistakes[0]
    first, second = nonfinite_steps(ended.err)
    assert second == first + 1
    assert not (tmp_path / "out" / "model").exists() and not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_a_bad_step_is_neither_applied_nor_scored(
    name: str,
    place: Place,
    tmp_path: Path,
    alone: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A NaN every other step: never two in a row, so the run goes on."""
    words = place.words(tmp_path / "out", *GRADUAL, "--max_nonfinite_steps", "2", "--warmup_ratio", "0")
    trainer = training_run.prepare(resolve([*words, "--deepspeed", str(ROOT / "ds_configs" / f"{name}.json")]))
    bad = False

    class Spoiled(CausalLoss):
        def summed_loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
            return super().summed_loss(model, batch) * (math.nan if bad else 1.0)

    def state() -> list[bytes]:
        weights = [p for _, a in adapter.adapters(trainer.engine.module) for p in (a.lora_A, a.lora_B)]
        with zero.gathered(weights):
            tuned = [p.detach().cpu().numpy().tobytes() for p in weights]
        pruner = trainer.pruner
        importance = b"" if pruner.growth.importance is None else pruner.growth.importance.cpu().numpy().tobytes()
        return [*tuned, importance, pruner.scores().tobytes(), pruner.scorer.abs_sums.cpu().numpy().tobytes()]

    trainer.training_loss.task_loss = Spoiled()
    for step in range(4):
        before, bad = state(), step % 2 == 1
        trainer.train_step(step)
        assert (state() == before) is bad, step
    bad = False
    assert torch.isfinite(torch.from_numpy(trainer.pruner.scores())).all()
    trainer.finish()
    assert len(nonfinite_steps(capfd.readouterr().err)) == 2
    rows = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    # strict JSON has no NaN
    assert [json.loads(row, parse_constant=pytest.fail)["loss"] is None for row in rows] == [False, True, False, True]
