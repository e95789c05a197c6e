"""How a command ends: one line on stderr and a status, whatever the environment says."""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Callable

import deepspeed
import pytest

from apt_ds.config.errors import LostRank, Stopped, UserError
from apt_ds.runtime import collectives, exit_status, launch_variables, zero
from apt_ds.runtime.zero.world import threads_of_rank


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
    assert line.startswith("error: the name 'xxx") and "is too long for a file: give a shorter path" in line
    assert len(line) < 400
    assert ended(raising(OSError(errno.EIO, "input/output error")), monkeypatch) == 1
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("rank", ["abc", "", "1.0", "-1", "9" * 5000])
def test_a_rank_that_is_no_number_hides_no_error(
    rank: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    for error, status, line in (
        (UserError("a mistake"), 2, "error: a mistake"),
        (LostRank("a loss"), 3, "error: rank 0, a loss"),
        (Stopped(15, "stopped at step 3"), 143, "stopped at step 3"),
    ):
        assert ended(raising(error), monkeypatch) == status
        assert capfd.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["abc", "1.0", "-1", "1_0"])
def test_a_run_refuses_a_variable_that_is_no_number(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in launch_variables.NUMBERS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}='{value}' is .*: unset it or start with the deepspeed launcher$"):
        launch_variables.check_variables()
    with pytest.raises(UserError, match=f"^{name}='{value}' is "):
        zero.init_distributed()


def test_the_present_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may put another mapping in the place of os.environ."""
    monkeypatch.setattr(os, "environ", {"RANK": "3", "LOCAL_RANK": "x"})
    assert launch_variables.number("RANK") == 3
    with pytest.raises(UserError, match=r"^LOCAL_RANK='x' is not a number"):
        launch_variables.check_variables()


def test_a_command_refuses_a_number_of_processes_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read after the work, when the ranks part."""
    monkeypatch.setattr(collectives, "ready", lambda: False)
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert ended(lambda: None, monkeypatch) == 2
    for name, read in (("RANK", collectives.rank), ("LOCAL_RANK", collectives.local_rank)):
        monkeypatch.setenv(name, "x")
        with pytest.raises(UserError, match=f"^{name}='x' is not a number"):
            read()


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launch_variables.NUMBERS, *launch_variables.LAUNCHERS):
        monkeypatch.setenv(name, "")
    launch_variables.check_variables()
    assert not launch_variables.launched()
    assert launch_variables.number("WORLD_SIZE", 1) == 1
    assert threads_of_rank({"LOCAL_WORLD_SIZE": "", "LOCAL_SIZE": "2"}, 8) == 4
    assert threads_of_rank({"LOCAL_WORLD_SIZE": "0"}, 8) == 8


def test_a_rank_alone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed would ask MPI for the other variables."""
    if importlib.util.find_spec("mpi4py") is not None:
        pytest.skip("needs a machine without mpi4py")
    for name in (*launch_variables.NUMBERS, *launch_variables.LAUNCHERS, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    if collectives.ready():
        # an earlier test of this process made a group
        deepspeed.comm.destroy_process_group()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"^RANK='0' is set without WORLD_SIZE, MASTER_ADDR, .*: unset it or start"):
        zero.init_distributed()
    assert launch_variables.absent()
    monkeypatch.delenv("RANK")
    assert not launch_variables.absent()


def test_an_empty_variable_of_a_launcher_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launch_variables.REQUIRED:
        monkeypatch.setenv(name, " ")
    assert not launch_variables.launched() and not launch_variables.absent()
    monkeypatch.setenv("RANK", "0")
    launch_variables.check_variables()
    assert [name for name in launch_variables.REQUIRED if name in os.environ] == ["RANK"]
