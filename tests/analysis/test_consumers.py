"""How consumers are run and compared. `tests/serving` runs the real ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from apt_ds.analysis.consumers import probes
from apt_ds.analysis.consumers.consumers import CONSUMERS, Consumer
from apt_ds.analysis.consumers.entry import COUNT, Case, Entry, Expected, compare, expected_of
from apt_ds.analysis.consumers.table import cell, consumer_table, reasons
from tests.support import tiny

EXPECTED = Expected("a text", [5, 6], [7, 8, 9], [-1.0, -2.0, -3.0])
# answers by the name of the folder. It checks that apt_ds cannot be imported
PROBE = """
import importlib, os, sys

def answer(case):
    name = os.path.basename(case["folder"])
    if name == "dies":
        print("the process died", file=sys.stderr)
        os._exit(3)
    if name == "refused":
        raise ValueError("no place for\\n 912 neurons")
    try:
        importlib.import_module("apt_ds.models")
    except ImportError:
        return case["tokens"], [value + (0.5 if name == "far" else 0.0) for value in case["logprobs"]]
"""


def test_answers_are_compared_by_tokens_and_log_probabilities() -> None:
    assert compare([7, 8, 9], [-1.0, -2.0, -3.001], EXPECTED, 0.01) == Entry("equal", 3, pytest.approx(0.001))
    assert compare([7, 8, 9], [], EXPECTED, 0.0).equal
    assert compare([7, 8, 9], [-1.0, -2.5, -3.0], EXPECTED, 0.01) == Entry("differs", 3, 0.5)
    # what follows a wrong token is no matter
    assert compare([7, 4, 9], [-1.0, -9.0, -9.0], EXPECTED, 0.01) == Entry("differs", 1, 0.0)
    assert compare([7, 8], [-1.0, -2.0], EXPECTED, 0.01).status == "differs"
    # a consumer that computes nonsense is not equal
    assert compare([7, 8, 9], [-1.0, float("nan"), -3.0], EXPECTED, 0.01).status == "differs"
    assert compare([7, 8, 9], [-1.0], EXPECTED, 0.01).status == "differs"


def test_a_process_answers_for_all_folders_and_survives_one_that_ends_it(tmp_path: Path) -> None:
    consumer = Consumer("probe", PROBE)
    names = ("good", "refused", "dies", "far", "good")
    entries = consumer.check_all([Case(tmp_path / name, EXPECTED) for name in names])
    assert [entry.status for entry in entries] == ["equal", "fails", "fails", "differs", "equal"]
    assert entries[1].reason == "ValueError: no place for 912 neurons"
    assert entries[2].reason == "the process died"
    assert entries[3].error == 0.5
    assert consumer.check(tmp_path / "good", EXPECTED).equal


def test_an_absent_consumer_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = Consumer("none", PROBE, "no_such_package", "APT_DS_NO_PYTHON")
    entry = missing.check(tmp_path, EXPECTED)
    assert entry.status == "not run" and "no_such_package is not installed, and APT_DS_NO_PYTHON" in entry.reason
    monkeypatch.setenv("APT_DS_NO_PYTHON", sys.executable)
    assert missing.check(tmp_path / "good", EXPECTED).equal
    old = next(consumer for consumer in CONSUMERS if consumer.name == "transformers 4.57")
    monkeypatch.delenv(old.executable, raising=False)
    assert old.absent() == "APT_DS_TRANSFORMERS4_PYTHON names no Python"


def test_every_probe_is_python() -> None:
    for consumer in CONSUMERS:
        compile(probes.FRAME.replace("{probe}", consumer.probe), consumer.name, "exec")
    assert len({consumer.name for consumer in CONSUMERS}) == len(CONSUMERS) == 8


def test_the_expected_tokens_are_greedy() -> None:
    model, tokenizer = tiny.model("mha").eval(), tiny.tokenizer()
    expected = expected_of(model, tokenizer, " ".join(tiny.WORDS[:3]))
    assert len(expected.tokens) == len(expected.logprobs) == COUNT and max(expected.logprobs) < 0
    ids = tokenizer(expected.text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    text = model.generate(ids, max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False, eos_token_id=None)
    assert text[0].tolist() == [*expected.prompt, *expected.tokens]


def test_the_table_counts_families() -> None:
    entries = {
        ("vLLM", "uniform", "llama"): Entry("equal", 8, 1e-6),
        ("vLLM", "uniform", "olmoe"): Entry("fails", reason="head_dim"),
        ("vLLM", "adaptive", "llama"): Entry("differs", 3, 0.5),
        ("llama.cpp", "uniform", "llama"): Entry("not run", reason="xllamacpp is not installed"),
    }
    assert cell({"a": Entry("equal", 8, 2e-6), "b": Entry("equal", 8)}) == "2 of 2 (2e-06)"
    lines = consumer_table(entries).splitlines()
    assert lines[2] == "| vLLM | 1 of 2 (1e-06); not olmoe | 0 of 1 | not run |"
    assert lines[3] == "| llama.cpp | not run | not run | not run |"
    assert reasons(entries).splitlines() == [
        "vLLM, uniform, olmoe: fails: head_dim",
        "vLLM, adaptive, llama: differs, 3 tokens equal, error 5.0e-01",
        "llama.cpp, uniform, llama: not run: xllamacpp is not installed",
    ]
