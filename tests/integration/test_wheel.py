"""The package from a wheel, outside of the checkout: training, a comparison, and the console scripts."""

from __future__ import annotations

import configparser
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import launcher, multiprocess
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


def call(command: list[str], folder: Path, **more: str) -> str:
    """Run a command in a folder and return its output. It must succeed."""
    ended = subprocess.run(
        command, cwd=folder, env=multiprocess.environment() | more, capture_output=True, text=True, timeout=580
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the package. Its build leaves nothing in the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    copy = place / "source"
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if name.startswith("apt_ds/") or name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    call([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(place), str(copy)], place)
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The wheel installed into a folder of its own, with inputs of a short run beside it."""
    place = wheel.parent / "elsewhere"
    place.mkdir()
    target = ["--no-deps", "--no-index", "--target", str(place / "site"), str(wheel)]
    call([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", *target], place)
    launcher.inputs(place)
    (place / "zero2.json").write_bytes((ROOT / "ds_configs" / "zero2.json").read_bytes())
    return place


def python(installed: Path, *words: str) -> str:
    """Run python in that folder, with the installed package alone."""
    return call([sys.executable, *words], installed, PYTHONPATH=str(installed / "site"))


def flags(installed: Path, output: str) -> list[str]:
    """Flags of a short run."""
    words = launcher.Place(installed).words(installed / output, "--calibration_steps", "2", deepspeed="zero2.json")
    words[words.index("--max_steps") + 1] = "3"
    return words


def test_the_package_comes_from_the_wheel(installed: Path) -> None:
    place = python(installed, "-c", "import apt_ds; print(apt_ds.__file__)").strip()
    assert Path(place).is_relative_to(installed / "site")
    assert (installed / "site" / "apt_ds" / "data" / "builtin" / "instructions.jsonl").is_file()
    assert (installed / "site" / "apt_ds" / "py.typed").is_file()


def test_the_wheel_trains(installed: Path) -> None:
    python(installed, "-m", "apt_ds.training.run", *flags(installed, "trained"), "--report", "false")
    assert (installed / "trained" / "model" / "model.safetensors").is_file()
    if importlib.util.find_spec("plotly"):
        python(installed, "-m", "apt_ds.analysis.run_report", str(installed / "trained"))
        assert "Run report: trained" in (installed / "trained" / "report.html").read_text(encoding="utf8")


def test_the_wheel_compares_methods(installed: Path) -> None:
    own = ["--methods", "lora,prune_lora", "--sparsity", "0.3"]
    python(installed, "-m", "apt_ds.commands.compare", *own, *flags(installed, "compared"))
    table = (installed / "compared" / "table.md").read_text(encoding="utf8")
    assert "lora" in table and "prune_lora" in table


def test_console_scripts_start_and_help(wheel: Path, installed: Path) -> None:
    names = {"apt-ds-train", "apt-ds-evaluate", "apt-ds-mmlu", "apt-ds-compare", "apt-ds-benchmark", "apt-ds-push"}
    names |= {"apt-ds-rewrite"}
    scripts = {path.name for path in (installed / "site" / "bin").iterdir()}
    assert names <= scripts
    entries = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        entries.read_string(archive.read(name).decode())
    assert set(entries["console_scripts"]) == names
    for name in sorted(names):
        script = installed / "site" / "bin" / name
        assert os.access(script, os.X_OK)
        assert "usage:" in python(installed, str(script), "--help")
