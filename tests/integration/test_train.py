"""Whole runs, by the deepspeed launcher and without it."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.elsewhere import ELSEWHERE
from tests.support.launcher import GRADUAL, PRETUNING, STEPS, Ended, Place, launch, start

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
CASES = [
    pytest.param(case, id=f"{case[0]}-{case[1]}", marks=[pytest.mark.slow] if case in SLOW else []) for case in MATRIX
]
JUDGED = {
    *("parameters", "held_out_loss", "generated_tokens_per_second", "decode_tokens_per_second"),
    *("prefill_tokens_per_second", "step_seconds", "peak_memory_bytes", "peak_added_bytes"),
}
LOGGED = {
    *("step", "loss", "learning_rate", "kept", "kept_parameters", "target", "ranks"),
    *("tokens_per_second", "non_padding", "peak_memory_bytes", "seconds"),
}
SIZED = {"sizes_before", "sizes"}  # of the first line, and after a rebuild

# loads the folder that its argument names as any user would, and writes the size and a short continuation of the model
READER = """
import json, sys
sys.modules["apt_ds"] = None  # an import of it fails, installed or not
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = open(sys.argv[1]).read()
model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
ids = AutoTokenizer.from_pretrained(folder)("the cat sees the dog", return_tensors="pt")
generated = model.generate(**ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
answer = {key: len(value) for key, value in info.items()}
answer |= {"parameters": model.num_parameters(), "new": generated.shape[1] - ids["input_ids"].shape[1]}
json.dump(answer | {"class": type(model).__name__}, open(sys.argv[1] + ".out", "w"))
"""


class Finished(NamedTuple):
    """A run of `MATRIX` that has ended, and what it wrote.

    Attributes:
        flags: the flags of `MATRIX`.
        ended: its status and its two streams.
        output: its output folder.
        figures: its summary.
        lines: its lines of metrics.
    """

    flags: list[str]
    ended: Ended
    output: Path
    figures: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def excluded(self) -> list[str]:
        """The consumers that the kept sizes exclude, a line each."""
        return self.figures["pruning"]["excluded"]


@pytest.fixture(scope="module", params=CASES)
def finished(request: pytest.FixtureRequest, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run for each row of `MATRIX`."""
    name, processes = request.param
    output = tmp_path_factory.mktemp("run") / "out"
    flags = MATRIX[name, processes]
    begin = launch if (name, processes) in LAUNCHED else start
    ended = begin(processes, place.words(output, *flags, "--report", "true", deepspeed=f"ds_configs/{name}.json"))
    assert ended.status == 0, ended.err
    figures = json.loads((output / "summary.json").read_text(encoding="utf8"))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    return Finished(flags, ended, output, figures, lines)


@pytest.mark.dist
def test_a_run_in_every_mode_writes_its_files_without_an_error(finished: Finished) -> None:
    ended, output = finished.ended, finished.output
    assert "Traceback" not in ended.err and not ended.mistakes
    reported = ["report.html"] if "--run_report" in finished.flags and importlib.util.find_spec("plotly") else []
    files = ["config.yaml", "metrics.jsonl", "model", *reported, "summary.json"]
    assert sorted(path.name for path in output.iterdir()) == files
    assert ended.out.count(f"report: {output / 'report.html'}\n") == len(reported)
    assert "held-out loss" in ended.out and f"model: {output / 'model'}" in ended.out


@pytest.mark.dist
def test_the_summary_compares_the_models_before_and_after(finished: Finished) -> None:
    figures = finished.figures
    for when in ("before", "after"):
        missing = {key for key in JUDGED if not (figures[when].get(key) or 0) > 0}
        assert not missing, (when, figures[when])
    assert figures["after"]["parameters"] < figures["before"]["parameters"]
    assert figures["pruning"]["kept"] <= figures["pruning"]["target_kept"] + 1e-9
    assert figures["pruning"]["target_kept"] == pytest.approx(0.6)
    assert len(figures["samples"]) == 1 and figures["samples"][0].keys() == {"question", "before", "after"}


@pytest.mark.dist
def test_consumers_that_the_sizes_exclude_are_in_summary_metrics_and_output(finished: Finished) -> None:
    excluded, neurons = finished.excluded, finished.figures["pruning"]["sizes"]["neurons"]
    assert any(line.startswith(f"neurons {neurons}: not") for line in excluded) == bool(neurons % 16)
    assert not excluded or f"the kept sizes exclude consumers: {'; '.join(excluded)}" in finished.ended.err
    warnings = [text for line in finished.lines for text in line.get("warnings", [])]
    assert not excluded or any(text.startswith("the kept sizes exclude consumers") for text in warnings)


@pytest.mark.dist
def test_every_step_has_a_complete_line_of_metrics(finished: Finished) -> None:
    lines = finished.lines
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(line.keys() - SIZED - {"warnings"} == LOGGED and math.isfinite(line["loss"]) for line in lines)
    assert all(line["peak_memory_bytes"] > 0 and line["tokens_per_second"] > 0 for line in lines)
    assert {"step", "salience", "search", "rebuild"} <= lines[0]["seconds"].keys()


@pytest.mark.dist
def test_metrics_follow_the_cuts_and_the_growth_of_ranks(finished: Finished) -> None:
    lines, pruning = finished.lines, finished.figures["pruning"]
    assert lines[-1]["kept"] == pruning["kept"] <= lines[-1]["target"] + 1e-9
    assert lines[-1]["ranks"]["mean"] > lines[0]["ranks"]["mean"] == 2 and lines[-1]["ranks"]["max"] <= 64
    assert lines[0].keys() >= SIZED and lines[0]["sizes_before"] == pruning["layers"]["before"]
    assert ("sizes" in lines[1]) == (lines[1]["seconds"]["rebuild"] > 0)
    if all(line["kept"] == lines[-1]["kept"] for line in lines):
        assert lines[-1]["kept"] < 1 and lines[0]["sizes"] == pruning["layers"]["after"]
    assert lines[0]["kept"] == (1.0 if "gradual" in finished.flags else lines[-1]["kept"])


@pytest.mark.dist
def test_the_written_configuration_is_that_of_the_command_line(finished: Finished) -> None:
    config = yaml.safe_load((finished.output / "config.yaml").read_text(encoding="utf8"))
    assert (config["sparsity"], config["max_steps"], config["bf16"]) == (0.4, STEPS, "--bf16" in finished.flags)


@pytest.mark.dist
def test_every_mode_ends_with_a_loadable_model(finished: Finished, tmp_path: Path) -> None:
    """In a process that has transformers and cannot import apt_ds."""
    (tmp_path / "folder").write_text(str(finished.output / "model"), encoding="utf8")
    ELSEWHERE.run(READER, tmp_path / "folder")
    model = json.loads((tmp_path / "folder.out").read_text(encoding="utf8"))
    assert model["class"] == "LlamaForCausalLM" and model["new"] == 4
    assert model["parameters"] == finished.figures["after"]["parameters"]
    assert not model["missing_keys"] and not model["unexpected_keys"] and not model["mismatched_keys"]


@pytest.mark.dist
def test_a_mistake_under_the_launcher_ends_all_processes(place: Place, tmp_path: Path) -> None:
    words = place.words(tmp_path / "out", "--data_path", str(tmp_path / "none.json"))
    ended = launch(2, words, timeout=120)
    assert ended.status == 2
    assert len(ended.mistakes) == 1 and "no such data file" in ended.mistakes[0], ended.err
    assert "Traceback" not in ended.err and not (tmp_path / "out").exists()
