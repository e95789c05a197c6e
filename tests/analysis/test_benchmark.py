"""The benchmark runs every variant and writes its figures."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from deepspeed.launcher.runner import parse_args

from apt_ds.analysis.bench import synthetic
from apt_ds.analysis.bench.table import Timed, render, summarize
from apt_ds.analysis.bench.variants import VARIANTS, chosen
from apt_ds.analysis.cluster_model import Load, Shape
from apt_ds.commands import benchmark as command
from apt_ds.config.errors import UserError
from tests.support import multiprocess
from tests.support.launcher import Ended, script_caller, start

SCRIPT = multiprocess.ROOT / "launchers" / "benchmark.py"
FILES = multiprocess.ROOT / "ds_configs"
SHAPE = Shape(blocks=1000, head=0, embeddings=0, adapters=0, attention=0, taps=0, gathers=0)


def call(*words: str) -> Ended:
    """The script in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--random_weights", "tiny", *words],
        env=multiprocess.environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def here(alone: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """What the script does, in this process, which is a world of one."""
    call = script_caller(command.main, capfd, monkeypatch)
    return lambda *words: call("--random_weights", "tiny", *words)


@pytest.mark.dist
@pytest.mark.parametrize(("name", "processes"), [("zero2", 0), ("zero3", 2), ("zero3_offload", 1)])
def test_every_variant_is_measured(name: str, processes: int, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the benchmark compares with PEFT: install the extra [dev]")
    figures = tmp_path / "figures.json"
    few = ["--variants", "dense,cut30"] if name == "zero3_offload" else []
    words = ["--deepspeed", str(FILES / f"{name}.json"), "--rounds", "1", "--steps", "1", "--json", str(figures)]
    words += ["--per_device_train_batch_size", "1", "--max_seq_length", "32", "--align", "8", "--bf16"]
    words += ["--prompt", "4", "--generate", "2", *few]
    done = start(processes, ["--random_weights", "tiny", *words], "benchmark") if processes else call(*words)
    assert done.status == 0, done.err[-3000:]
    report = json.loads(figures.read_text(encoding="utf8"))
    four = {"qlora"} if name == "zero2" and importlib.util.find_spec("bitsandbytes") else set()
    expected = {"dense", "cut30"} if few else {v.name for v in VARIANTS.values() if v.bits == 16} | four
    for key in ("step_seconds", "tokens_per_second", "peak_memory_bytes", "utilisation"):
        assert expected <= set(report[key]) and min(report[key].values()) > 0
    cuts = {variant for variant in expected if VARIANTS[variant].sparsity}
    for key in ("rebuild_seconds", "rebuild_peak_bytes", "steady_peak_bytes"):
        assert cuts <= set(report[key]) and min(report[key].values()) > 0
    assert set(report["rounding"]) == ({"cut30in4"} if four and not few else set())
    for errors in report["rounding"].values():
        assert 0 < errors["sliced_first"] <= errors["cut"] * 1.01 < 1.5 * errors["sliced_first"]
    assert set(report["inference"]) == {"dense", "cut30", "cut50"}
    assert min(report["inference"]["cut50"].values()) > 0 and "batch 32" in report["inference"]["cut50"]
    assert {f"{key} {batch}" for key in ("decode", "static") for batch in (1, 32)} <= set(report["inference"]["cut30"])
    assert report["static_is_captured"] is False and set(report["attention"].values()) == {"sdpa"}
    assert "generation" in done.out
    pasted = [line for line in done.out.splitlines() if line.startswith("| ")]
    assert len(pasted) == 2 + len({*report["step_seconds"], *report["inference"]})
    assert "| static cache at 32 |" in pasted[0]
    assert ("time/lora" in done.out) == ("lora" in expected)


def test_the_table_says_which_targets_are_missed() -> None:
    seconds = {"lora": 1.0, "dense": 1.06, "cut30": 0.74, "cut50": 0.6}
    rounds = {
        name: [Timed([value, value, 9.0], round(1e9 * value) + 7, None, SHAPE, [6.0] if "cut" in name else [], 8, 9)]
        for name, value in seconds.items()
    }
    figures = summarize(rounds, Load(100, 0, 1), 2, 1e6, process=7)
    assert figures["peak_memory_bytes"]["lora"] == 1e9
    assert figures["steady_peak_bytes"]["cut50"] == 1 and figures["rebuild_peak_bytes"]["cut50"] == 2
    assert figures["utilisation"]["lora"] == pytest.approx(0.4) and figures["joules_per_step"] == {}
    assert figures["tokens_per_second"]["lora"] == 200
    figures["inference"] = {
        name: {"batch 1": speed, "first 1": 0.1, "batch 32": speed, "first 32": 0.1}
        for name, speed in (("dense", 10.0), ("cut30", 13.4), ("cut50", 17.0))
    }
    figures["rounding"] = {"cut30in4": {"cut": 0.1, "cut_max": 0.2, "sliced_first": 0.09, "sliced_first_max": 0.19}}
    text = render(figures)
    assert "10.00       20.00          9.00       19.00" in text
    assert "dense: 1.060 of LoRA's time, target at most 1.05: MISSED" in text
    assert "cut30: 0.740 of LoRA's time, target at most 0.75: met" in text
    assert "cut50: 0.600 of LoRA's memory, target at most 0.58: MISSED" in text
    assert "rebuild to cut30: 6.00 s, target at most 5: MISSED" in text
    assert "generation at batch 1, cut30: 1.340x, target at least 1.35: MISSED" in text


def test_variants_that_cannot_be_measured_are_left_out_or_refused() -> None:
    config = {"zero_optimization": {"stage": 3}}
    picked, notes = chosen([], config)
    assert {v.name for v in picked} == {v.name for v in VARIANTS.values() if v.bits == 16}
    assert len(notes) == 3
    assert [v.name for v in chosen(["cut50", "lora"], config)[0]] == ["lora", "cut50"]
    for names in (["qlora"], ["cut70"]):
        with pytest.raises(UserError, match="--variants"):
            chosen(names, config)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--rounds 0", "at least 1"),
        ("--peak_tflops -1", "a number above 0"),
        ("--predict many", "at least 1"),
        ("--random_weights none.json", "llama2-13b"),
        ("--predict 8 --measured none.json", "none.json"),
        ("--json /", "'/' is a folder: give the name of a file"),
    ],
)
def test_mistakes_are_one_line(words: str, part: str, here: Callable[..., Ended]) -> None:
    done = here("--deepspeed", str(FILES / "zero2.json"), *words.split())
    assert done.status == 2 and part in done.err
    assert len(done.mistakes) == 1


def test_the_script_ends_with_the_status_of_a_mistake() -> None:
    done = call("--deepspeed", str(FILES / "zero2.json"), "--no_such_option", "1")
    assert done.status == 2 and "--no_such_option is an unknown option" in done.err and len(done.mistakes) == 1


def test_a_prediction_needs_no_device(here: Callable[..., Ended]) -> None:
    done = here("--deepspeed", str(FILES / "zero3.json"), "--random_weights", "llama2-7b", "--predict", "8,64,512")
    assert done.status == 0, done.err
    rows = [line.split()[:2] for line in done.out.splitlines()[-6:]]
    assert rows == [[stage, devices] for stage in "23" for devices in ("8", "64", "512")]


def test_a_dry_run_of_sizes_needs_no_weights(here: Callable[..., Ended]) -> None:
    pytest.importorskip("peft", reason="the benchmark compares with PEFT: install the extra [dev]")
    done = here("--deepspeed", str(FILES / "zero2.json"), "--dry_run", "--device_memory", "1", "--bf16", "--align", "8")
    assert done.status == 0, done.err
    assert done.out.splitlines()[-1].startswith("fits: a device 0.")


@pytest.mark.parametrize(
    "name", ["variants", "rounds", "steps", "json", "random_weights", "generate", "prompt", "peak_tflops", "predict"]
)
def test_the_deepspeed_launcher_lets_options_through(name: str) -> None:
    words = [f"--{name}", "1", f"--{name}=1"]
    assert parse_args(["launchers/benchmark.py", *words]).user_args == words


def test_layers_of_drawn_weights_are_alike() -> None:
    thin = synthetic.one_layer(synthetic.random_base("tiny:3"))
    assert thin.config.num_hidden_layers == 1 and thin.config.hidden_size == 64 and thin.random
    assert {slot.path.split(".")[2] for slot in thin.anatomy.slots if ".layers." in slot.path} == {"0"}
    other = replace(thin, random=False)
    assert synthetic.one_layer(other) is other
