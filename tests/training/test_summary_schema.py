"""The summary and the metrics of real runs have the keys and types of the schema, and SCHEMA.md lists every key."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import deepspeed
import pytest

from apt_ds.models.export.facts import read_facts
from apt_ds.training.metrics_schema import MetricsLine
from apt_ds.training.model_figures import ModelFigures
from apt_ds.training.summary_schema import VERSION, Summary
from tests.support import tiny
from tests.support.launcher import PRETUNING, Place, Run
from tests.support.paths import ROOT


def mismatches(value: Any, schema: Any, where: str = "") -> list[str]:
    """Every place at which a JSON value differs from a type: unknown or missing keys, other types."""
    if is_typeddict(schema):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} is no object"]
        hints = get_type_hints(schema)
        wrong = [f"{where}.{key}: unknown" for key in value.keys() - hints.keys()]
        wrong += [f"{where}.{key}: missing" for key in schema.__required_keys__ - value.keys()]
        return wrong + [
            text for key in value.keys() & hints.keys() for text in mismatches(value[key], hints[key], f"{where}.{key}")
        ]
    origin, arguments = get_origin(schema), get_args(schema)
    if origin in (Union, types.UnionType):
        return [] if any(not mismatches(value, one) for one in arguments) else [f"{where}: {value!r} is no {schema}"]
    if origin is list and isinstance(value, list):
        return [text for n, one in enumerate(value) for text in mismatches(one, arguments[0], f"{where}[{n}]")]
    if origin is dict and isinstance(value, dict):
        return [text for key, one in value.items() for text in mismatches(one, arguments[1], f"{where}.{key}")]
    # JSON does not tell 1.0 from 1 for all writers, and a truth value is no number
    expected = (int, float) if schema is float else origin or schema
    right = isinstance(value, expected) and isinstance(value, bool) == (schema is bool)
    return [] if right else [f"{where}: {value!r} is no {schema}"]


def check(output: Path) -> dict[str, Any]:
    """The summary of a run, once it and every line of metrics match the schema."""
    summary = json.loads((output / "summary.json").read_text(encoding="utf8"))
    assert mismatches(summary, Summary, "summary") == []
    assert summary["version"] == VERSION
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert mismatches(line, MetricsLine, "metrics") == []
    return summary


def test_a_run_on_instructions(place: Place, tmp_path: Path, run: Run) -> None:
    words = place.words(tmp_path / "out", *PRETUNING, "--max_steps", "3", "--report", "true", "--profile")
    words += ["--distill", "logits", "--teacher_cache", str(tmp_path / "teacher")]
    ended = run(words)
    assert ended.status == 0, ended.err
    summary = check(tmp_path / "out")
    distill = summary["training"]["distill"]
    files = sum(path.stat().st_size for path in (tmp_path / "teacher").iterdir())
    assert distill["tokens"] > 0 and 0.8 * files < distill["bytes"] < files and distill["distance"] > 0
    refused = run([*words, "--distill_temperature", "2", "--overwrite_output_dir"])
    assert refused.status == 2 and len(refused.mistakes) == 1, refused.err
    assert "was made from another --distill_temperature" in refused.mistakes[0]
    assert {"before", "after_cut", "after", "profile", "samples"} <= summary.keys()
    assert {"held_out_perplexity", "generated_tokens_per_second", "step_seconds"} <= summary["after"].keys()


def test_a_run_on_a_task_that_distills(tmp_path: Path, run: Run) -> None:
    words = tiny.save_task(tmp_path / "task", "bert-classes")
    place = Place(tmp_path)
    words = place.words(tmp_path / "out", *words, "--max_steps", "3", "--pruning", "gradual", "--mask_step", "0.5")
    words += ["--structure", "adaptive", "--distill", "--reference_score", "1", "--eval_steps", "1"]
    words += ["--export_format", "padded"]
    ended = run(words)
    assert ended.status == 0, ended.err
    summary = check(tmp_path / "out")
    assert {"accuracy", "score"} <= summary["after"].keys() and "after_cut" not in summary
    assert {"reference_score", "reached_97_percent", "reached_97_percent_pruned"} <= summary["training"].keys()
    assert [entry["step"] for entry in summary["training"]["history"]] == [1, 2, 3]
    check_padded(tmp_path / "out", summary, ended.out)


def test_a_score_at_the_step_of_the_last_cut_is_one_of_the_final_size(tmp_path: Path, run: Run) -> None:
    words = tiny.save_task(tmp_path / "task", "bert-classes")
    words = Place(tmp_path).words(tmp_path / "out", *words, "--max_steps", "3", "--pruning", "gradual")
    words += ["--pruning_phase", "1", "--distill", "--reference_score", "0.01", "--eval_steps", "1"]
    ended = run(words)
    assert ended.status == 0, ended.err
    training = check(tmp_path / "out")["training"]
    assert [(entry["step"], entry["pruned"]) for entry in training["history"]] == [(1, False), (2, False), (3, True)]
    assert training["reached_97_percent_pruned"]["step"] == 3


def check_padded(output: Path, summary: dict[str, Any], printed: str) -> None:
    """The folder is a stock model, the cost of padding is printed, and apt_ds.json has the sizes of the summary."""
    written = summary["written"]
    assert written["format"] == "padded" and 0 < written["padding_bytes"] < written["bytes"]
    assert "padded with 0.0 MB of zeros: 0.1 MB, " in printed and "% more than the adaptive form" in printed
    assert not list((output / "model").glob("*.py"))
    facts = read_facts(output / "model")
    assert facts["export_format"] == "padded" and facts["versions"]["deepspeed"] == deepspeed.__version__
    assert facts["base"]["name"] == "model" and facts["base"]["fingerprint"] and set(facts["fingerprints"]) > {"train"}
    for kind in ("head", "neuron"):
        kept = [len(entry["kept"]) for entry in facts["sublayers"] if entry["kind"] == kind]
        sizes = summary["pruning"]["sizes"][f"{kind}s"]
        assert kept == (sizes if isinstance(sizes, list) else [sizes] * len(kept))
    assert set(facts["ranks"]) == {entry for entry in facts["ranks"] if entry.startswith("bert.encoder.layer.")}
    assert min(facts["ranks"].values()) >= 2


def test_mismatches_are_seen() -> None:
    figures = {"held_out_loss": 1.0, "parameters": 3, "step_seconds": None}
    assert mismatches(figures, ModelFigures) == []
    for key, value in (("held_out_loss", None), ("parameters", 3.5), ("parameters", True), ("unheard_of", 1)):
        assert mismatches(figures | {key: value}, ModelFigures), (key, value)
    assert mismatches({"version": 1}, Summary)
    assert mismatches([1, "2"], list[int]) and mismatches({"a": "b"}, dict[str, float])


def keys(schema: Any) -> set[str]:
    """Every key of a schema and of what it holds."""
    if is_typeddict(schema):
        hints = get_type_hints(schema)
        return set(hints) | {key for hint in hints.values() for key in keys(hint)}
    return {key for argument in get_args(schema) for key in keys(argument)}


@pytest.mark.parametrize("schema", [Summary, MetricsLine], ids=lambda schema: schema.__name__)
def test_the_readme_lists_every_key(schema: Any) -> None:
    text = (ROOT / "apt_ds" / "training" / "SCHEMA.md").read_text(encoding="utf8")
    assert sorted(key for key in keys(schema) if f"`{key}`" not in text) == []
