"""What --deterministic sets, before what, and that a run with it is the run without it on the CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.runtime import zero
from apt_ds.runtime.deterministic import CUBLAS, FLASH, _settings, deterministic
from apt_ds.training import run as training_run
from tests.support.launcher import Place, Run, caller


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has set nothing."""
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.delenv(FLASH, raising=False)


ON = {
    "algorithms": True,
    "warn_only": False,
    "fill": False,
    "cudnn": True,
    "benchmark": False,
    "cudnn_attention": False,
}


def test_everything_is_set_inside_and_as_it_was_outside() -> None:
    before = _settings()
    assert not before["algorithms"]
    with deterministic(True):
        assert _settings() == ON
        assert (os.environ[CUBLAS], os.environ[FLASH]) == (":4096:8", "1")
        # these remain, and their backward is deterministic in this mode
        cuda = torch.backends.cuda
        assert cuda.flash_sdp_enabled() and cuda.mem_efficient_sdp_enabled() and cuda.math_sdp_enabled()
    assert _settings() == before and CUBLAS not in os.environ and FLASH not in os.environ
    with pytest.raises(KeyError), deterministic(True):
        raise KeyError
    assert _settings() == before
    with deterministic(False):
        assert _settings() == before and CUBLAS not in os.environ


def test_an_operation_without_a_deterministic_kernel_raises() -> None:
    values = torch.zeros(4)
    with deterministic(True), pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        values.put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)


def test_what_cublas_has_already_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic(True):
        assert os.environ[CUBLAS] == ":16:8"
    assert os.environ[CUBLAS] == ":16:8"
    monkeypatch.setenv(CUBLAS, ":0:0")
    with pytest.raises(UserError, match=":4096:8 or :16:8"), deterministic(True):
        pass
    monkeypatch.delenv(CUBLAS)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UserError, match="CUDA has started"), deterministic(True):
        pass


def test_it_is_set_before_the_processes_meet(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA starts where the processes meet at the earliest."""

    class MeetError(Exception):
        """The processes would meet now."""

    def meet(timeout: float, watched: bool) -> None:
        assert _settings() == ON and os.environ[CUBLAS] == ":4096:8" and not torch.cuda.is_initialized()
        raise MeetError

    monkeypatch.setattr(zero, "init_distributed", meet)
    with pytest.raises(MeetError):
        training_run.train(resolve(place.words(tmp_path / "out", "--deterministic")))


def test_a_run_with_it_is_the_run_without_it_on_the_cpu(
    alone: None, place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Run = caller(capfd, monkeypatch)
    flags = ["--pruning", "gradual", "--mask_step", "0.5", "--max_steps", "4", "--report", "false"]
    losses, weights = [], []
    for name, more in (("plain", []), ("deterministic", ["--deterministic"])):
        output = tmp_path / name
        ended = run(place.words(output, *flags, *more))
        assert ended.status == 0, ended.err
        assert f"deterministic: {str(bool(more)).lower()}" in (output / "config.yaml").read_text(encoding="utf8")
        lines = (output / "metrics.jsonl").read_text(encoding="utf8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
        weights.append(load_file(output / "model" / "model.safetensors"))
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert not torch.are_deterministic_algorithms_enabled()
