"""Where collectives wait for ever for a dead peer, as NCCL's do, silence alone ends the others, and soon."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from apt_ds.runtime import collectives
from apt_ds.runtime.watchdog import SILENCE, Seen, Watchdog
from tests.support import multiprocess, tiny

FLAGS = ["--max_steps", "3", "--align", "4", "--calibration_steps", "2", "--save_steps", "0", "--timeout", "600"]


@pytest.mark.dist
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_survivor_that_is_blocked_ends_in_time(victim: int, tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    tiny.save_data(tmp_path / "data.json")
    arguments = {"folder": str(tmp_path), "victim": victim, "flags": FLAGS}
    with pytest.raises(multiprocess.WorldFailedError) as failure:
        # far less than --timeout: without the bound this ends with a signal
        multiprocess.run(2, "fault_injection.blocked", arguments, timeout=90)
    end, ended = time.monotonic(), failure.value
    assert ended.statuses[victim] == -signal.SIGKILL and ended.statuses[1 - victim] == 3, ended.text
    (line,) = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: rank {1 - victim}, in calibration step 1: update: rank {victim}"), line
    assert "--resume_from_checkpoint last" in line and "Traceback" not in ended.text
    assert "unblocked" not in ended.text
    (began,) = [float(text.split()[-1]) for text in ended.text.splitlines() if text.startswith("blocked at ")]
    assert end - began < 6 + 4


def test_silence_is_judged_sooner_than_progress_under_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SILENCE <= 60
    gloo = Watchdog(600)
    assert (gloo.period, gloo.limit, gloo.silence) == (5.0, 585.0, 585.0)
    monkeypatch.setattr(collectives, "waits_for_lost_peers", lambda: True)
    nccl = Watchdog(600)
    # the thread looks every period, and a sign may be a period old when it is heard
    assert nccl.limit == 585.0 and nccl.silence + 3 * nccl.period == SILENCE
    assert Watchdog(10).silence < 10 and Watchdog(600, silence=6).silence == 4.5
    nccl.seen = [Seen(phase="step 3", limited=True, alive=100.0, moved=100.0) for _ in range(3)]
    nccl.answered = 100.0
    assert nccl.verdict(100.0 + nccl.silence - 0.1) == ""
    assert "rank 0, which keeps" in nccl.verdict(100.1 + nccl.silence)
    nccl.answered = 200.0
    assert "rank 1 (last in step 3), rank 2" in nccl.verdict(200.0)
    for seen in nccl.seen:
        seen.alive = 200.0
    # all live and none moves: that takes as long as under gloo
    assert nccl.verdict(200.0) == ""
    late = nccl.answered = 100.1 + nccl.limit
    for seen in nccl.seen:
        seen.alive = late
    assert "no rank has moved for 585 s" in nccl.verdict(late)
