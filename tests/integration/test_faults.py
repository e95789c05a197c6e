"""A rank that dies, hangs or gets a signal: the others end in time and name the cause, and the run can resume."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from apt_ds.config.errors import LostRank, UserError
from apt_ds.runtime import collectives, heartbeat
from apt_ds.runtime.error_messages import translate_error
from apt_ds.runtime.watchdog import Seen, Watchdog
from apt_ds.training import checkpoint
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT

FLAGS = [
    *("--pruning", "gradual", "--structure", "adaptive", "--max_steps", "6", "--sparsity", "0.4", "--align", "4"),
    *("--mask_step", "0.5", "--rank", "2", "--prune_every", "2", "--save_steps", "1", "--timeout", "10"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("faults")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    return place


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> list[str]:
    return [*FLAGS, "--output_dir", str(tmp_path / "out")]


def strike(
    folder: Path, flags: list[str], where: str, victim: int, number: int, count: int = 2
) -> multiprocess.WorldFailedError:
    """How a world ends in which a rank is struck."""
    arguments = {"folder": str(folder), "where": where, "victim": victim, "number": int(number), "flags": flags}
    arguments["count"] = count
    with pytest.raises(multiprocess.WorldFailedError) as failure:
        multiprocess.run(2, "fault_injection.faulty", arguments, timeout=120)
    return failure.value


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.dist
def test_a_killed_rank_ends_the_others_and_the_run_goes_on(folder: Path, output: list[str], tmp_path: Path) -> None:
    """A kill in each phase of one run, which ends as if it had never been hit."""
    saved: list[int] = []
    for where, victim, phase in (
        ("step", 1, "step 1"),
        ("rebuild", 1, "rebuild"),
        ("save", 1, "save"),
        ("write", 0, "save"),
    ):
        flags = [*output, "--resume_from_checkpoint", "last"] if saved else output
        ended = strike(folder, flags, where, victim, signal.SIGKILL)
        assert ended.statuses[victim] == -signal.SIGKILL and ended.statuses[1 - victim] == 3, ended.text
        assert len(lines(ended.text)) == 1 and "Traceback" not in ended.text, ended.text
        assert phase in lines(ended.text)[0] and f"rank {victim}" in lines(ended.text)[0].partition(":")[2]
        checkpoints = checkpoint.numbered(Path(output[-1]))
        for _, path in checkpoints:
            checkpoint.verify(path)
        before, saved = saved, sorted(step for step, _ in checkpoints)
        assert len(saved) >= len(before) and bool(saved) == (where != "step")
    arguments = {"folder": str(folder), "name": "on", "stage": 3, "offload": False}
    on = multiprocess.run(2, "whole", arguments | {"flags": [*output, "--resume_from_checkpoint", "last"]})
    straight = multiprocess.run(2, "whole", arguments | {"flags": [*FLAGS, "--output_dir", str(tmp_path / "straight")]})
    assert on == straight and [row["step"] for row in on["rows"]] == list(range(1, 7))
    assert not list(Path(output[-1]).glob("*.tmp"))


@pytest.mark.dist
def test_a_rank_that_is_terminated_names_the_rank_that_was_killed() -> None:
    with pytest.raises(multiprocess.WorldFailedError) as failure:
        multiprocess.run(2, "fault_injection.left_behind", {}, timeout=60)
    # not the signal's own: whoever supervises another host must start again
    assert failure.value.statuses == [3, -signal.SIGKILL]
    assert "asked to leave, but rank 1 (last in " in lines(failure.value.text)[0], failure.value.text
    assert "found: rank 1 (last in " in failure.value.text, failure.value.text


@pytest.mark.dist
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_ends_the_others(victim: int, folder: Path, output: list[str]) -> None:
    ended = strike(folder, output, "step", victim, signal.SIGSTOP)
    assert ended.statuses[1 - victim] == 3
    mine = [line for line in lines(ended.text) if line.startswith(f"error: rank {1 - victim}, in ")]
    assert len(mine) == 1 and f"rank {victim}" in mine[0] and "step 1" in mine[0], ended.text
    assert "sign of life" in mine[0] or "has not answered" in mine[0]


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_saves_and_stops_all(number: int, folder: Path, output: list[str]) -> None:
    ended = strike(folder, [*output, "--save_steps", "0"], "step", 1, number)
    assert ended.statuses == [128 + number, 128 + number], ended.text
    assert "Traceback" not in ended.text and ended.text.count("stopped after step 1") == 1
    assert [step for step, _ in checkpoint.numbered(Path(output[-1]))] == [1]
    flags = [*output, "--resume_from_checkpoint", "last"]
    arguments = {"folder": str(folder), "name": "on", "stage": 3, "offload": False, "flags": flags}
    assert [row["step"] for row in multiprocess.run(2, "whole", arguments)["rows"]] == list(range(1, 7))


def test_supervise_starts_again_from_the_last_checkpoint_at_most_n_times(tmp_path: Path) -> None:
    """With a stand-in that writes a checkpoint, then dies, and notes what it was called with."""
    bash = shutil.which("bash")
    assert bash
    program = tmp_path / "program"
    program.write_text(
        f"#!{bash}\necho \"$@\" >> '{tmp_path}/calls'\nmkdir -p '{tmp_path}/out/checkpoint-4'\n"
        f"touch '{tmp_path}/out/checkpoint-4/manifest.json'\nexit \"$(cat '{tmp_path}/status')\"\n"
    )
    program.chmod(0o755)
    for status, calls in ((247, 3), (3, 3), (2, 1), (143, 1), (0, 1)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "calls").unlink(missing_ok=True)
        (tmp_path / "status").write_text(str(status))
        words = [bash, str(ROOT / "launchers" / "supervise.sh"), "2", str(tmp_path / "out"), str(program), "--a", "b"]
        assert subprocess.run(words, capture_output=True, timeout=60).returncode == status
        expected = ["--a b", *["--a b --resume_from_checkpoint last"] * (calls - 1)]
        assert (tmp_path / "calls").read_text().splitlines() == expected, status


def test_supervise_overwrites_only_what_its_own_starts_wrote(tmp_path: Path) -> None:
    """With a stand-in that writes and dies before its first checkpoint."""
    bash = shutil.which("bash")
    assert bash
    program, out = tmp_path / "program", tmp_path / "out"
    program.write_text(f"#!{bash}\necho \"$@\" >> '{tmp_path}/calls'\nmkdir -p '{out}'\ntouch '{out}/log'\nexit 137\n")
    program.chmod(0o755)
    for before, again in (
        (None, "--a --overwrite_output_dir"),
        ("empty", "--a --overwrite_output_dir"),
        ("model", "--a"),
    ):
        shutil.rmtree(out, ignore_errors=True)
        (tmp_path / "calls").unlink(missing_ok=True)
        if before is not None:
            out.mkdir()
        if before == "model":
            (out / "model").mkdir()
        words = [bash, str(ROOT / "launchers" / "supervise.sh"), "1", str(out), str(program), "--a"]
        assert subprocess.run(words, capture_output=True, timeout=60).returncode == 137
        assert (tmp_path / "calls").read_text().splitlines() == ["--a", again], before


@pytest.fixture
def dog(monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """Rank 0's watchdog in a world of 3, all heard of at second 100. No thread runs."""
    watchdog = Watchdog(20)
    watchdog.seen = [Seen(beats=5, phase=f"step {rank}", limited=True, alive=100.0, moved=100.0) for rank in range(3)]
    watchdog.answered = 100.0
    return watchdog


def test_the_watchdog_names_who_is_silent_and_who_is_behind(dog: Watchdog) -> None:
    late = 100.0 + dog.limit + 0.1
    assert dog.limit < 20 and dog.verdict(late - 0.2) == ""
    assert "rank 0, which keeps" in dog.verdict(late)
    dog.answered = late
    assert "rank 1 (last in step 1), rank 2 (last in step 2) gave no sign of life" in dog.verdict(late)
    for seen in dog.seen:
        seen.alive = late
    dog.seen[2].beats = 4
    assert "no rank has moved" in dog.verdict(late) and "behind: rank 2 (last in step 2)" in dog.verdict(late)
    dog.seen[1].limited = False
    assert dog.verdict(late) == ""


def test_memory_that_ran_out_is_one_line_with_three_settings(dog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat.CURRENT, "phase", "step 7: forward and backward")
    # what the CPU allocator really says
    import torch

    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60)
    for error in (failure.value, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        translated = translate_error(error, dog)
        assert isinstance(translated, UserError) and "step 7: forward and backward" in str(translated)
        settings = ("--per_device_train_batch_size", "--gradient_checkpointing", "zero3_offload.json")
        assert all(flag in str(translated) for flag in settings)
    other = RuntimeError("shapes do not match")
    assert translate_error(other, dog) is other
    dog.period = 0.01
    dog.seen[1].alive = 1e12
    for error in (
        RuntimeError("[gloo] Connection closed by peer"),
        collectives.BROKEN[0]("Failed to recv, got 0 bytes"),
    ):
        assert isinstance(translate_error(error, dog), LostRank)
