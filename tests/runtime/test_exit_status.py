"""How a command ends: one line on stderr and a status, whatever the environment says."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from apt_ds.runtime import exit_status


def ended(action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """The status with which a command ends."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(exit_status, "leave", leave)
    with pytest.raises(SystemExit) as end:
        exit_status.main(action)
    return int(str(end.value.code))


def raising(error: Exception) -> Callable[[], object]:
    """An action that fails."""

    def action() -> None:
        raise error

    return action


def test_a_name_that_is_too_long_is_a_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Where no check of its option has found it."""
    assert ended(lambda: os.stat(300 * "x"), monkeypatch) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: 'xxx") and "name is too long: give a shorter path" in line and len(line) < 400
    assert ended(raising(OSError(errno.EIO, "input/output error")), monkeypatch) == 1
    assert "Traceback" in capfd.readouterr().err
