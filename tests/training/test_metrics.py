"""Lines of metrics are JSON, whatever the loss is."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.runtime import notices
from apt_ds.training.metrics import MetricsLogger
from apt_ds.training.metrics_schema import MetricsLine


def line(step: int, loss: float) -> MetricsLine:
    return {
        "step": step,
        "loss": loss,
        "learning_rate": 0.1,
        "kept": 1.0,
        "kept_parameters": 10,
        "target": 1.0,
        "ranks": {"min": 1, "mean": 1.5, "max": 2},
        "tokens_per_second": 3.0,
        "peak_memory_bytes": 5,
        "seconds": {"step": 1.0, "rebuild": 0.0, "salience": 0.0, "search": 0.0},
    }


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path, 3, quiet=True)
    assert list(tmp_path.iterdir()) == []
    for step, loss in enumerate((1.5, math.nan, math.inf), start=1):
        logger.step(line(step, loss))
    logger.close()
    rows = [json.loads(text) for text in logger.metrics().splitlines()]
    assert [row["loss"] for row in rows] == [1.5, None, None]
    assert rows[0] == line(1, 1.5)


def test_a_warning_is_in_the_next_line_and_in_the_summary(tmp_path: Path) -> None:
    notices.start()
    logger = MetricsLogger(tmp_path, 3, quiet=True)
    logger.warn("step 1: non-finite loss")
    logger.say("step 1: score 3")
    for step in (1, 2):
        logger.step(line(step, 1.0))
    logger.close()
    rows = [json.loads(text) for text in logger.metrics().splitlines()]
    assert rows[0]["warnings"] == ["step 1: non-finite loss"] and "warnings" not in rows[1]
    assert notices.kept() == ["step 1: non-finite loss"]


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    logger = MetricsLogger(tmp_path, 3, quiet=True)
    logger.step(line(2, 1.0))
    logger.close()
    assert [json.loads(text)["step"] for text in logger.metrics().splitlines()] == [1, 2]


def test_a_line_that_cannot_be_written_is_kept_and_ends_the_run_later(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path, 3, quiet=True)
    logger.step(line(1, 1.0))
    logger.check()
    logger.close()
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    full = MetricsLogger(tmp_path, 3, quiet=True)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    for step in (2, 3):
        full.step(line(step, 1.0))
    full.close()
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b'{"step": 2, "lo')
    assert [json.loads(text)["step"] for text in full.metrics().splitlines()] == [1, 2, 3]
    with pytest.raises(
        UserError, match=r"metrics\.jsonl: No space left on device. Free some space and go on with --res"
    ):
        full.check()


def test_a_process_without_stderr_keeps_its_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    logger = MetricsLogger(tmp_path, 1)
    logger.warn("text")
    logger.close()
    assert logger.state_dict()[0] == ["text"]
