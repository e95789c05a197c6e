"""The package from Python: several runs in one process, exceptions instead of exits, nothing left behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import apt_ds
from apt_ds.config.errors import UserError
from tests.support import launcher, multiprocess
from tests.support.paths import ROOT


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python process without a launcher's environment."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=multiprocess.environment(), capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, its data, and all that one process made of them."""
    place = tmp_path_factory.mktemp("api")
    launcher.inputs(place)
    ended = python("-m", "tests.support.api_job", str(place), str(ROOT / "ds_configs"))
    assert ended.returncode == 0, ended.stderr
    return place


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    """What the calls of that process returned."""
    return json.loads((folder / "results.json").read_text(encoding="utf8"))


def test_a_folder_that_cannot_exist_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"^'xx.* \.\.\. x+' is not the output folder of a run"):
        apt_ds.export(300 * "x")


def test_train_returns_the_summary(folder: Path, results: dict[str, Any]) -> None:
    # the summary of the first run was written again by its export
    for name in ("second", "sharded", "cut"):
        summary = results["prune" if name == "cut" else name]
        assert summary == json.loads((folder / name / "summary.json").read_text(encoding="utf8"))
        assert summary["pruning"]["kept"] < 0.65


def test_runs_in_one_process_do_not_disturb_each_other(folder: Path, results: dict[str, Any]) -> None:
    first, second = (folder / name / "model" / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert results["first"]["after"]["held_out_loss"] == results["second"]["after"]["held_out_loss"]
    assert results["sharded"]["after"]["held_out_loss"] == pytest.approx(
        results["first"]["after"]["held_out_loss"], abs=1e-3
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no data", "nowhere"),
        ("occupied", "already"),
        ("dry run", "apt-ds-train --dry_run"),
        ("unfinished", "step 2 of 4"),
        ("no measure", "give one of"),
        ("decided", "apt_ds.export decides output_dir itself"),
    ],
)
def test_mistakes_are_user_errors(results: dict[str, Any], name: str, text: str) -> None:
    assert text in results[name]


def test_the_process_is_left_as_it_was(results: dict[str, Any]) -> None:
    for state in results["states"][1:]:
        assert state == results["states"][0]
    assert results["states"][0]["own_threads"] == [] and not results["states"][0]["group"]


def test_a_stopped_run_says_how_to_go_on(results: dict[str, Any]) -> None:
    for name in ("stopped", "stopped sharded"):
        assert results[name] == "stopped after step 2: go on with --resume_from_checkpoint last"


def test_export_writes_the_same_model_again(results: dict[str, Any]) -> None:
    assert results["exported"]


def test_prune_cuts_without_tuning(folder: Path, results: dict[str, Any]) -> None:
    summary = results["prune"]
    assert summary["pruning"]["kept"] <= summary["pruning"]["target_kept"] < 0.61
    assert summary["after"]["held_out_loss"] == pytest.approx(summary["after_cut"]["held_out_loss"], abs=1e-5)
    assert (folder / "cut" / "model" / "config.json").is_file()


def test_evaluate_returns_figures(results: dict[str, Any]) -> None:
    assert results["perplexity"]["block_length"] == 32 and results["perplexity"]["perplexity"] > 1


WAIT = """
import sys, apt_ds
run = apt_ds.RunConfig(model_name_or_path=sys.argv[1], data_path=sys.argv[2], output_dir=sys.argv[3],
                       deepspeed=sys.argv[4], max_steps=100000, report=False, eval_size=4, max_seq_length=64)
try:
    apt_ds.train(run)
except Exception as error:
    print(type(error).__name__, error.status, flush=True)
print("alive")
"""


@pytest.mark.parametrize("after_a_step", [False, True])
def test_a_signal_becomes_an_exception(tmp_path: Path, after_a_step: bool) -> None:
    place = launcher.inputs(tmp_path)
    output = tmp_path / "out"
    words = [str(place.folder / "model"), str(place.folder / "data.json"), str(output)]
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, *words, str(ROOT / "ds_configs" / "zero2.json")],
        cwd=ROOT,
        env=multiprocess.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = output / "metrics.jsonl"
    end = time.monotonic() + 120
    # the file appears before the first evaluation, its first line after the first step
    while not (metrics.is_file() and (metrics.stat().st_size or not after_a_step)):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert out.splitlines()[-2:] == ["Stopped 130", "alive"], err
    assert list(output.glob("checkpoint-*/manifest.json")) != [] or not after_a_step


def test_the_package_is_imported_without_torch() -> None:
    ended = python(
        "-c",
        "import sys, time; start = time.perf_counter(); import apt_ds; took = time.perf_counter() - start\n"
        "assert 'torch' not in sys.modules and 'yaml' not in sys.modules, 'heavy imports'\n"
        "names = ['AptCallback', 'RunConfig', 'UserError', 'evaluate', 'export', 'load_adapters', 'prune', 'train']\n"
        "assert sorted(apt_ds.__all__) == names\n"
        "apt_ds.RunConfig(sparsity=0.4); apt_ds.train; apt_ds.UserError\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "assert not hasattr(apt_ds, 'nothing'); print(took)",
    )
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 0.2


@pytest.mark.parametrize("name", ["train", "evaluate", "eval_mmlu", "compare"])
def test_help_needs_no_torch(name: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{name}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path('launchers/{name}.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code and 'torch' not in sys.modules\n"
        "    print('HELP SHOWN')\n"
    )
    start = time.monotonic()
    ended = python("-c", code)
    assert "HELP SHOWN" in ended.stdout and "usage:" in ended.stdout, ended.stderr
    # below a second on a free machine; loading torch alone would take longer on a busy one
    assert time.monotonic() - start < 5


OWN_STATE = """
import os, signal, sys, threading, torch, apt_ds
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import HfDeepSpeedConfig

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[3]}-meeting", rank=0, world_size=1)
sharded = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
variables = {name: value for name, value in os.environ.items() if name != "KMP_INIT_AT_FORK"}
run = apt_ds.RunConfig(model_name_or_path=sys.argv[1], data_path=sys.argv[2], output_dir=sys.argv[3], max_steps=2,
                       deepspeed=sys.argv[4], report=False, eval_size=4, max_seq_length=64, sparsity=0.4, align=4)
torch.set_default_dtype(torch.float64)
with torch.no_grad(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
    print(apt_ds.train(run)["after"]["held_out_loss"])
print(apt_ds.evaluate(sys.argv[3] + "/model", perplexity=sys.argv[2], block_length=32, deepspeed=sys.argv[4]) is None)
print(torch.get_default_dtype(), torch.distributed.is_initialized(), is_deepspeed_zero3_enabled())
print(variables == {name: value for name, value in os.environ.items() if name != "KMP_INIT_AT_FORK"})
"""


def test_the_callers_own_state_changes_no_figure_and_stays(folder: Path, tmp_path: Path) -> None:
    """A process group of one, a configuration of ZeRO 3, defaults of torch and contexts around the call."""
    losses = []
    plain = OWN_STATE.replace("torch.float64", "torch.float32").replace(
        'with torch.no_grad(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):', "if True:"
    )
    for name, script in (("own", OWN_STATE), ("plain", plain)):
        words = [str(folder / "model"), str(folder / "data.json"), str(tmp_path / name)]
        ended = python("-c", script, *words, str(ROOT / "ds_configs" / "zero2.json"))
        assert ended.returncode == 0, ended.stderr
        loss, *_, evaluated, state, variables = ended.stdout.splitlines()
        losses.append(loss)
        assert state == f"torch.float{64 if name == 'own' else 32} True True"
        assert (evaluated, variables) == ("False", "True")
    assert losses[0] == losses[1]


HIDDEN_SIGNAL = """
import os, signal, sys, apt_ds
import transformers

read = transformers.AutoConfig.from_pretrained
def killed(*values, **named):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        return read(*values, **named)
    except Exception as error:
        raise {"ValueError": ValueError, "RuntimeError": RuntimeError}[sys.argv[5]]("cannot be read") from error
transformers.AutoConfig.from_pretrained = killed
run = apt_ds.RunConfig(model_name_or_path=sys.argv[1], data_path=sys.argv[2], output_dir=sys.argv[3], max_steps=2,
                       deepspeed=sys.argv[4], report=False, eval_size=4, max_seq_length=64)
try:
    apt_ds.train(run)
except Exception as error:
    print(type(error).__name__, error.status)
"""


@pytest.mark.parametrize("error", ["ValueError", "RuntimeError"])
def test_ctrl_c_before_the_first_step_is_no_mistake_in_the_input(error: str, folder: Path, tmp_path: Path) -> None:
    """Whatever is read then may take the exception for an unreadable file."""
    words = [str(folder / "model"), str(folder / "data.json"), str(tmp_path / "out")]
    ended = python("-c", HIDDEN_SIGNAL, *words, str(ROOT / "ds_configs" / "zero2.json"), error)
    assert ended.stdout.splitlines()[-1:] == ["Stopped 130"], ended.stderr


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: apt_ds.train(None), "apt_ds.train takes a RunConfig and got NoneType"),
        (lambda: apt_ds.export(None), "apt_ds.export takes the output folder of a run and got NoneType"),
        (lambda: apt_ds.evaluate("model", help=True), "apt-ds-evaluate --help lists the options"),
        (lambda: apt_ds.evaluate("nowhere", perplexity="-corpus.txt"), "'-corpus.txt'"),
    ],
)
def test_a_slip_in_a_call_is_a_user_error(call: Callable[[], object], text: str) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        call()


def test_numbers_of_numpy_are_numbers() -> None:
    run = apt_ds.RunConfig(max_steps=np.int64(4), sparsity=np.float32(0.5), learning_rate=np.int32(1))
    assert (run.optim.max_steps, run.pruning.sparsity, run.optim.learning_rate) == (4, 0.5, 1.0)
    assert {type(value) for value in (run.optim.max_steps, run.pruning.sparsity)} == {int, float}
