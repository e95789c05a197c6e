"""Which steps count as failed, and how a run ends early."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.runtime.signals import Stopped, StopSignals
from apt_ds.training.early_end import EarlyEnd
from apt_ds.training.metrics import MetricsLogger
from tests.support import multiprocess
from tests.support.paths import ROOT


def early_end(folder: Path, *flags: str) -> EarlyEnd:
    run = resolve(["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--max_nonfinite_steps", "2", *flags])
    return EarlyEnd(run, StopSignals(), MetricsLogger(folder, 9, quiet=True))


def test_failed_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    end = early_end(tmp_path)
    for good in (False, True, False):
        end.watch("step", math.nan, good)
        end.end("after step 1")
    assert end.nonfinite_steps == 1 and not end.must_end()
    end.watch("step", math.nan, False)
    assert end.must_end()
    with pytest.raises(UserError, match="after step 4: 2 steps in a row had a non-finite loss or gradient"):
        end.end("after step 4")


def test_under_fp16_an_overflow_with_a_finite_loss_is_no_failure(tmp_path: Path) -> None:
    end = early_end(tmp_path, "--fp16", "--bf16", "false")
    end.watch("step", 1.0, False)
    assert end.nonfinite_steps == 0
    end.watch("step", math.inf, False)
    assert end.nonfinite_steps == 1


def test_a_signal_ends_the_run_at_the_boundary_with_its_status(tmp_path: Path) -> None:
    end = early_end(tmp_path)
    end.listen_if(0)
    assert not end.must_end()
    end.stop_signals.asked = signal.SIGTERM
    assert end.received and not end.must_end()
    end.listen_if(1)
    assert end.must_end()
    with pytest.raises(Stopped, match="stopped after step 3: go on with --resume_from_checkpoint last") as stopped:
        end.end("after step 3")
    assert stopped.value.status == 128 + signal.SIGTERM


@pytest.mark.dist
def test_a_full_disk_of_the_first_rank_ends_all_ranks(tmp_path: Path) -> None:
    outcome = multiprocess.run(2, "mistake_jobs.ended_by_a_full_disk", {"folder": str(tmp_path)}, timeout=120)
    text = f"cannot write {tmp_path / 'metrics.jsonl'}: No space left on device. Free some space and go on with"
    assert outcome == [[True, False], [f"{text} --resume_from_checkpoint last"] * 2]


def test_the_count_survives_a_checkpoint(tmp_path: Path) -> None:
    end, again = early_end(tmp_path), early_end(tmp_path)
    end.watch("step", math.nan, False)
    again.load_state_dict(*end.state_dict())
    assert again.nonfinite_steps == 1
