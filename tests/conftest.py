"""What all tests share: no network, no GPU unless a test asks for it, the real data, processes that form a world."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.devices import gpus, hide_gpus, on_cpu
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.launcher import Place, Run

hide_gpus()
# DeepSpeed compiles with the first ninja of PATH. It must be this environment's: a change of ninja compiles again
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# workers and ranks share the cores: threads that wait for each other would take them
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Let xdist keep the order of files. It would end with long ones that have few tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that start processes: a long one at the end would leave the other workers idle."""
    starting = {item.path for item in items if item.get_closest_marker("dist")}
    items.sort(key=lambda item: item.path not in starting)


def pytest_collection_finish() -> None:
    """Let collections during the tests skip the libraries' objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """This process is a world of its own."""
    from tests.support.launcher import own_world

    with own_world():
        yield


@pytest.fixture(scope="module")
def joined(alone: None) -> None:
    """This process is a world of its own and has initialized DeepSpeed and its collectives."""
    from apt_ds.runtime import zero

    zero.init_distributed()


@pytest.fixture
def run(alone: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """What `launchers/train.py` does, in this process."""
    from tests.support.launcher import caller

    return caller(capfd, monkeypatch)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("APT_DS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; set APT_DS_DATA")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A tiny model and its data."""
    from tests.support.launcher import inputs

    return inputs(tmp_path_factory.mktemp("place"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is no GPU."""
    if item.get_closest_marker("gpu") and not on_cpu() and not gpus():
        pytest.skip("needs a GPU")
