"""Whole runs, by the deepspeed launcher and without it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.launcher import GRADUAL, PRETUNING, STEPS, Place, launch, start

# (file of ds_configs, processes): what else is typed
MATRIX: dict[tuple[str, int], list[str]] = {
    ("zero2", 1): PRETUNING,
    ("zero2", 2): [*GRADUAL, "--bf16", "--run_report", "true"],
    ("zero2_offload", 1): [*GRADUAL, "--bf16", "--gradient_accumulation_steps", "2"],
    ("zero2_offload", 2): PRETUNING,
    ("zero3", 1): [*GRADUAL, "--bf16", "--gradient_checkpointing"],
    ("zero3", 2): PRETUNING,
    ("zero3_offload", 1): PRETUNING,
    ("zero3_offload", 2): [*GRADUAL, "--bf16", "--gradient_accumulation_steps", "2"],
}
# the others take the same steps in another mode
SLOW = {("zero2_offload", 2), ("zero3_offload", 1)}
# what the launcher starts. It and the libraries take most of the time of such a run
LAUNCHED = {("zero2", 2)}
CASES = [pytest.param(*case, marks=[pytest.mark.slow] if case in SLOW else []) for case in MATRIX]
JUDGED = {
    *("parameters", "held_out_loss", "generated_tokens_per_second", "decode_tokens_per_second"),
    *("prefill_tokens_per_second", "step_seconds", "peak_memory_bytes", "peak_added_bytes"),
}
LOGGED = {
    *("step", "loss", "learning_rate", "kept", "kept_parameters", "target", "ranks"),
    *("tokens_per_second", "non_padding", "peak_memory_bytes", "seconds"),
}
SIZED = {"sizes_before", "sizes"}  # of the first line, and after a rebuild

# Loads the folders it reads from stdin as any user would, and tells the size and a short continuation of each.
READER = """
import json, sys
sys.modules["apt_ds"] = None  # an import of it fails, installed or not
from transformers import AutoModelForCausalLM, AutoTokenizer
for line in sys.stdin:
    folder = line.strip()
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    ids = AutoTokenizer.from_pretrained(folder)("the cat sees the dog", return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    found = {key: len(value) for key, value in info.items()}
    found |= {"parameters": model.num_parameters(), "new": made.shape[1] - ids["input_ids"].shape[1]}
    print("found", json.dumps(found | {"class": type(model).__name__}), flush=True)
"""


@pytest.fixture(scope="module")
def read_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Loads a folder in a process, started once, that has transformers and cannot import apt_ds."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", READER],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    asked, told = process.stdin, process.stdout

    def read(folder: Path) -> dict[str, Any]:
        asked.write(f"{folder}\n")
        asked.flush()
        answer = next((line for line in told if line.startswith("found ")), "")
        assert answer, "the reader ended: see its traceback on stderr"
        return json.loads(answer.removeprefix("found "))

    yield read
    asked.close()
    process.wait(60)
    told.close()


@pytest.mark.dist
@pytest.mark.parametrize(("name", "processes"), CASES)
def test_a_run(
    name: str, processes: int, place: Place, tmp_path: Path, read_model: Callable[[Path], dict[str, Any]]
) -> None:
    output = tmp_path / "out"
    flags = MATRIX[name, processes]
    begin = launch if (name, processes) in LAUNCHED else start
    ended = begin(processes, place.words(output, *flags, "--report", "true", deepspeed=f"ds_configs/{name}.json"))
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err and not ended.mistakes
    reported = ["report.html"] if "--run_report" in flags and importlib.util.find_spec("plotly") else []
    files = ["config.yaml", "metrics.jsonl", "model", *reported, "summary.json"]
    assert sorted(path.name for path in output.iterdir()) == files
    assert ended.out.count(f"report: {output / 'report.html'}\n") == len(reported)

    figures = json.loads((output / "summary.json").read_text(encoding="utf8"))
    for when in ("before", "after"):
        missing = {key for key in JUDGED if not (figures[when].get(key) or 0) > 0}
        assert not missing, (when, figures[when])
    assert figures["after"]["parameters"] < figures["before"]["parameters"]
    assert figures["pruning"]["kept"] <= figures["pruning"]["target_kept"] + 1e-9
    assert figures["pruning"]["target_kept"] == pytest.approx(0.6)
    assert "held-out loss" in ended.out and f"model: {output / 'model'}" in ended.out
    excluded, neurons = figures["pruning"]["excluded"], figures["pruning"]["sizes"]["neurons"]
    assert any(line.startswith(f"neurons {neurons}: not") for line in excluded) == bool(neurons % 16)
    assert not excluded or f"the kept sizes exclude consumers: {'; '.join(excluded)}" in ended.err
    assert len(figures["samples"]) == 1 and figures["samples"][0].keys() == {"question", "before", "after"}

    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row.keys() - SIZED - {"warnings"} == LOGGED and math.isfinite(row["loss"]) for row in rows)
    told = [text for row in rows for text in row.get("warnings", [])]
    assert not excluded or any(text.startswith("the kept sizes exclude consumers") for text in told)
    assert all(row["peak_memory_bytes"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    assert {"step", "salience", "search", "rebuild"} <= rows[0]["seconds"].keys()
    assert rows[-1]["kept"] == figures["pruning"]["kept"] <= rows[-1]["target"] + 1e-9
    assert rows[-1]["ranks"]["mean"] > rows[0]["ranks"]["mean"] == 2 and rows[-1]["ranks"]["max"] <= 64
    assert rows[0].keys() >= SIZED and rows[0]["sizes_before"] == figures["pruning"]["layers"]["before"]
    assert ("sizes" in rows[1]) == (rows[1]["seconds"]["rebuild"] > 0)
    if all(row["kept"] == rows[-1]["kept"] for row in rows):
        assert rows[-1]["kept"] < 1 and rows[0]["sizes"] == figures["pruning"]["layers"]["after"]
    assert rows[0]["kept"] == (1.0 if "gradual" in flags else rows[-1]["kept"])

    config = yaml.safe_load((output / "config.yaml").read_text(encoding="utf8"))
    assert (config["sparsity"], config["max_steps"], config["bf16"]) == (0.4, STEPS, "--bf16" in flags)

    found = read_model(output / "model")
    assert found["class"] == "LlamaForCausalLM" and found["new"] == 4
    assert found["parameters"] == figures["after"]["parameters"]
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]


@pytest.mark.dist
def test_a_mistake_under_the_launcher_ends_all_processes(place: Place, tmp_path: Path) -> None:
    words = place.words(tmp_path / "out", "--data_path", str(tmp_path / "none.json"))
    ended = launch(2, words, timeout=120)
    assert ended.status == 2
    assert len(ended.mistakes) == 1 and "no such data file" in ended.mistakes[0], ended.err
    assert "Traceback" not in ended.err and not (tmp_path / "out").exists()
