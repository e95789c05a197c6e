"""The Slurm file: run with stand-ins for Slurm's commands and the launcher, which note what they are called with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from apt_ds.config.resolve import resolve
from tests.support.paths import ROOT

FILE = ROOT / "launchers" / "slurm_alpaca.sbatch"
# of a node: the words it is started with, one a line, then whatever the file `then` says
LAUNCHER = 'printf "%s\\n" "$@" > {folder}/words; cat "$2" > {folder}/hosts; . {folder}/then'


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder of stand-ins. srun starts one task, in a process group of its own as slurmstepd does."""
    place = tmp_path / "bin"
    place.mkdir()
    texts = {
        "scontrol": f'case $1 in show) printf "node1\\nnode2\\n" ;; *) echo "$@" >> {tmp_path}/requeued ;; esac',
        "srun": f'shift; echo $$ > {tmp_path}/step; SLURM_NODEID=0 exec "$@"',
        "deepspeed": LAUNCHER.format(folder=tmp_path),
    }
    for name, text in texts.items():
        (place / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
        (place / name).chmod(0o755)
    (tmp_path / "then").write_text("exit 0")
    return place


def start(commands: Path, **more: str) -> subprocess.Popen[str]:
    place = commands.parent
    job = {"SLURM_JOB_ID": "71234", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_GPUS_PER_NODE": "a100:4"}
    output = {"APT_DS_OUTPUT": str(place / "out"), "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    environment = os.environ | job | output | more
    (place / "ds_configs").symlink_to(ROOT / "ds_configs") if not (place / "ds_configs").exists() else None
    return subprocess.Popen(["bash", str(FILE)], cwd=place, env=environment, stderr=subprocess.PIPE, text=True)


def flags(commands: Path) -> list[str]:
    words = (commands.parent / "words").read_text().splitlines()
    return words[words.index("launchers/train.py") + 1 :]


def test_the_script_parses_and_its_options_exist(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert subprocess.run(["bash", "-n", str(FILE)]).returncode == 0
    assert start(commands).wait(60) == 0
    monkeypatch.chdir(ROOT)
    run = resolve(flags(commands))
    assert (
        run.source.preset == "llama2-7b-alpaca"
        and run.optim.per_device_train_batch_size == 2
        and run.output.save_total_limit == 3
    )
    words = (commands.parent / "words").read_text().splitlines()
    launcher = words[: words.index("launchers/train.py")]
    assert launcher[0] == "--hostfile" and launcher[2:] == [
        *("--no_ssh", "--node_rank", "0", "--master_addr", "node1", "--master_port", "21234")
    ]
    assert (commands.parent / "hosts").read_text() == "node1 slots=4\nnode2 slots=4\n"
    assert not list(commands.parent.glob(".hosts-*")) and not (commands.parent / "requeued").exists()


def test_a_fault_goes_back_into_the_queue_and_a_mistake_does_not(commands: Path) -> None:
    place = commands.parent
    for status, requeued in ((2, 0), (3, 1)):
        (place / "then").write_text(f"exit {status}")
        assert start(commands).wait(60) == status
        assert len((place / "requeued").read_text().splitlines() if requeued else []) == requeued
    assert start(commands, SLURM_RESTART_COUNT="20").wait(60) == 3
    assert (place / "requeued").read_text() == "requeue 71234\n", "not for ever"
    assert flags(commands)[-1] == "--overwrite_output_dir"
    (place / "out" / "checkpoint-7").mkdir(parents=True)
    (place / "out" / "checkpoint-7" / "manifest.json").touch()
    assert start(commands, SLURM_RESTART_COUNT="1").wait(60) == 3
    assert flags(commands)[-2:] == ["--resume_from_checkpoint", "last"]


def test_slurms_warning_leaves_the_launcher_alive(commands: Path) -> None:
    """A launcher heeds no USR1: it would end and take the ranks along before they have saved."""
    place = commands.parent
    (place / "then").write_text(f"touch {place}/ready; while ! [[ -e {place}/saved ]]; do sleep 0.1; done; exit 99")
    job = start(commands)
    end = time.monotonic() + 60
    while not (place / "ready").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(int((place / "step").read_text()), signal.SIGUSR1)
    job.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    (place / "saved").touch()
    assert job.wait(60) == 99
    assert (place / "requeued").read_text() == "requeue 71234\n"
