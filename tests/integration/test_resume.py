"""A resumed run equals one that never stopped, bit for bit. On other ranks and stages it is equal up to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, block_slices
from tests.support import multiprocess, tiny

pytestmark = pytest.mark.dist

SIZES = ["--align", "4", "--mask_step", "0.5", "--rank", "2", "--prune_every", "2"]
# gradual: cuts and growth after steps 2 and 4; pretuning: a cut before step 1, growth after 2 and 3
MODES = {
    "gradual": ["--pruning", "gradual", "--structure", "adaptive", "--max_steps", "8", "--sparsity", "0.5", *SIZES],
    "pretuning": ["--calibration_steps", "2", "--max_steps", "6", "--sparsity", "0.4", *SIZES],
}
BF16 = {mode: [*flags, "--bf16"] for mode, flags in MODES.items()}
EMPTY = [*MODES["gradual"], "--sparsity", "0.75", "--align", "16", "--allow_empty_layers"]
SEARCH = ["--allocate", "kl", "--allocate_evaluations", "60"]
# scores without information, so that the search finds better sizes
RANDOM = [*SEARCH, "--structure", "adaptive", "--score", "random", "--scale_steps", "8"]
# all weights are trained: none is frozen, and every moment follows the cuts
WHOLE = ["--train", "all", "--rank_growth", "none", "--prune_blocks", "heads,neurons,hidden"]
GRADUAL_WHOLE = [*MODES["gradual"], *WHOLE]
LATE_WHOLE = [*MODES["pretuning"], "--pruning", "posttuning", *WHOLE]
FLAP = [*MODES["pretuning"], "--score", "flap"]
REPAIR = ["--repair", "ls", "--repair_examples", "16"]
# instructions and plain text, packed, with batches made ahead; HERE: the folder of the data
MIXED = [*MODES["gradual"], "--data_path", "HERE/data.json:0.4,HERE/text.txt:0.6", "--eval_size", "5"]
MIXED += ["--packing", "--per_device_train_batch_size", "2", "--dataloader_num_workers", "1"]
# the same, read while training: every rank a part of both sources
STREAMED = [*MODES["gradual"], "--data_path", "HERE/lines.jsonl:0.6,HERE/rows.jsonl:0.4", "--eval_size", "5"]
STREAMED += ["--streaming", "--shuffle_buffer_size", "7", "--dataloader_num_workers", "1"]
SCORED = [*MODES["pretuning"], *STREAMED[len(MODES["gradual"]) :], "--packing", *REPAIR]
# name, stage, offload, flags, checkpoints: before, at and after a cut or a growth
CASES = [
    ("gradual3", 3, False, MODES["gradual"], [1, 2, 5]),
    ("repaired2o", 2, True, [*BF16["pretuning"], *REPAIR, *SEARCH], [1, 3]),
    ("emptied3", 3, False, EMPTY, [3, 5]),
    ("staged3", 3, False, [*MODES["gradual"], *REPAIR], [2, 3]),
    ("mixed2", 2, False, MIXED, [3]),
    ("streamed2", 2, False, STREAMED, [3]),
]
# all weights: before and after a cut
WHOLE_CASES = [("gradual_whole3", 3, False, GRADUAL_WHOLE, [1, 5]), ("late_whole2", 2, False, LATE_WHOLE, [2, 4])]
MORE_WHOLE = [
    ("gradual_whole2o", 2, True, [*GRADUAL_WHOLE, "--bf16"], [1, 2, 3, 5]),
    ("gradual_whole3o", 3, True, GRADUAL_WHOLE, [1, 2, 3, 5, 8]),
    ("late_whole0", 0, False, LATE_WHOLE, [1, 3, 4]),
    ("late_whole3", 3, False, [*LATE_WHOLE, *REPAIR, "--bf16"], [2, 3, 4]),
    ("emptied_whole3", 3, False, [*EMPTY, *WHOLE], [3, 5]),
    ("staged_whole3o", 3, True, [*GRADUAL_WHOLE, *REPAIR], [2, 3]),
]
# learned gates and a teacher: in their phase, at its end, and after the cut
GATES = ["--max_steps", "8", "--sparsity", "0.5", "--align", "4", "--prune_every", "2", "--structure", "adaptive"]
GATE_CASES = [("gates3", 3, False, ["--method", "lora_prune_distill", *GATES], [3, 5])]
MORE_GATES = [
    ("gates2o", 2, True, ["--method", "lora_prune_distill", "--bf16", "--allow_empty_layers", *GATES], [1, 2, 4, 5]),
    ("gates_whole3", 3, False, ["--method", "prune_distill", *GATES], [1, 2, 3, 4, 5]),
    ("gates_whole0", 0, False, ["--method", "prune_distill", *GATES], [2, 3]),
]
MORE = [
    ("pretuning2o", 2, True, BF16["pretuning"], [1, 3]),
    ("repaired3", 3, False, [*MODES["pretuning"], *REPAIR], [1, 3]),
    ("staged2o", 2, True, [*BF16["gradual"], *REPAIR, "--distill", "--teacher", "shrinking"], [1, 2, 3, 5]),
    ("searched3", 3, False, [*MODES["pretuning"], *RANDOM], [1, 3]),
    ("gradual2", 2, False, BF16["gradual"], [1, 2, 3, 5]),
    ("pretuning2", 2, False, MODES["pretuning"], [1, 2, 4]),
    ("gradual3o", 3, True, MODES["gradual"], [1, 2, 3, 5, 8]),
    ("pretuning3o", 3, True, BF16["pretuning"], [1, 2, 4]),
    ("streamed3", 3, False, STREAMED, [1, 2, 3, 4, 5, 6, 7, 8]),
    ("scored2", 2, False, SCORED, [1, 3, 5]),
    ("staged_stream2", 2, False, [*STREAMED, *REPAIR], [2, 3]),
    ("gradual0", 0, False, MODES["gradual"], [3]),
    ("started3", 3, False, [*MODES["gradual"], "--pruning_start", "0.25"], [1, 2, 3, 5]),
    # the cut gives the model biases that the base lacks
    ("flap3", 3, False, FLAP, [1, 3]),
    ("flap2", 2, False, [*FLAP, "--bf16", "--adapter_targets", "q,v,down"], [2]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("checkpoint")
    tiny.save_model(place / "model")
    tiny.save_data(place / "data.json")
    (place / "text.txt").write_text(" ".join(tiny.WORDS * 60), encoding="utf8")
    records = json.loads((place / "data.json").read_text(encoding="utf8"))
    (place / "lines.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf8")
    text = [" ".join(tiny.WORDS[n % 9 :] * 2) for n in range(40)]
    (place / "rows.jsonl").write_text("\n".join(json.dumps({"text": one}) for one in text), encoding="utf8")
    return place


def at(folder: Path, flags: list[str]) -> list[str]:
    return [flag.replace("HERE", str(folder)) for flag in flags]


Runs = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def some(folder: Path) -> Runs:
    cases = [(*case[:3], at(folder, case[3]), case[4]) for case in (*CASES, *WHOLE_CASES, *GATE_CASES)]
    return multiprocess.run(2, "resumed", {"folder": str(folder), "cases": cases})


def same(runs: dict[str, Any]) -> None:
    """Check that all runs of a case have the same outcome, and that it cut and grew ranks."""
    straight = runs["straight"]
    assert straight["rebuilds"] >= 2 and straight["rows"][-1]["kept"] < 0.62
    assert straight["rows"][-1]["ranks"]["max"] > 2
    equal(runs)


def same_whole(runs: dict[str, Any]) -> None:
    """As `same`, for runs without adapters."""
    straight = runs["straight"]
    assert straight["rebuilds"] >= 1 and straight["rows"][-1]["kept"] < 0.62
    assert straight["rows"][-1]["ranks"]["max"] == 0
    equal(runs)


def equal(runs: dict[str, Any]) -> None:
    """Check that all runs of a case have the same outcome."""
    straight = runs["straight"]
    for when, run in runs.items():
        differing = [key for key in straight if run[key] != straight[key]]
        assert not differing, (when, differing)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_resuming_is_bit_identical_to_never_having_stopped(case: tuple[Any, ...], some: Runs) -> None:
    assert len(some[case[0]]) == 2 + len(case[4])
    same(some[case[0]])


@pytest.mark.parametrize("case", WHOLE_CASES, ids=lambda case: case[0])
def test_a_run_that_trains_all_weights_resumes_across_its_cuts(case: tuple[Any, ...], some: Runs) -> None:
    assert len(some[case[0]]) == 2 + len(case[4])
    same_whole(some[case[0]])


@pytest.mark.parametrize("case", GATE_CASES, ids=lambda case: case[0])
def test_learned_gates_and_their_teacher_resume_bit_for_bit(case: tuple[Any, ...], some: Runs) -> None:
    same_gates(some[case[0]])


def same_gates(runs: dict[str, Any]) -> None:
    """Check that all runs of a case have the same outcome, and cut once."""
    straight = runs["straight"]
    assert straight["rebuilds"] == 1 and [row["kept"] for row in straight["rows"]][:4] == [1.0] * 4
    assert straight["rows"][-1]["kept"] <= 0.5
    equal(runs)


def test_some_run_empties_a_sublayer(some: Runs) -> None:
    sizes = anatomy_of(tiny.config()).sizes
    alive = np.isin(np.arange(sizes.total()), some["emptied3"]["straight"]["alive"])
    counts = [int(alive[span].sum()) for site, span in block_slices(sizes) if site != HIDDEN]
    assert min(counts) == 0 < max(counts), counts


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=lambda case: case[0])
def test_resuming_is_bit_identical_in_every_mode(case: tuple[Any, ...], folder: Path) -> None:
    cases = [(*case[:3], at(folder, case[3]), case[4])]
    same(multiprocess.run(2, "resumed", {"folder": str(folder), "cases": cases})[case[0]])


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_WHOLE, ids=lambda case: case[0])
def test_a_run_that_trains_all_weights_resumes_in_every_mode(case: tuple[Any, ...], folder: Path) -> None:
    cases = [(*case[:3], at(folder, case[3]), case[4])]
    same_whole(multiprocess.run(2, "resumed", {"folder": str(folder), "cases": cases})[case[0]])


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_GATES, ids=lambda case: case[0])
def test_learned_gates_resume_in_every_mode(case: tuple[Any, ...], folder: Path) -> None:
    cases = [(*case[:3], at(folder, case[3]), case[4])]
    same_gates(multiprocess.run(2, "resumed", {"folder": str(folder), "cases": cases})[case[0]])


@pytest.mark.slow
def test_a_stream_resumes_only_with_as_many_ranks(folder: Path, some: Runs) -> None:
    source = str(folder / "streamed2" / "checkpoint-3")
    flags = [*at(folder, STREAMED), "--resume_from_checkpoint", source]
    line = multiprocess.run(1, "refused", {"folder": str(folder), "flags": flags})
    assert "was made by 2 processes, this run has 1" in line


@pytest.mark.slow
def test_a_broken_record_of_one_rank_ends_all_ranks_in_one_line(folder: Path) -> None:
    lines = [json.dumps({"instruction": f"the cat {n}", "output": "sees"}) for n in range(200)]
    lines[99] = "{broken"  # in the part of rank 1, after what every rank reads at the start
    (folder / "broken.jsonl").write_text("\n".join(lines), encoding="utf8")
    flags = [*at(folder, STREAMED), "--data_path", str(folder / "broken.jsonl")]
    line = multiprocess.run(2, "refused", {"folder": str(folder), "flags": flags})
    assert "broken.jsonl, line 100, column 2: not valid JSON" in line


def alike(run: dict[str, Any], straight: dict[str, Any]) -> None:
    """Check that the decisions are the same, and the losses up to rounding."""
    assert run["alive"] == straight["alive"] and run["rebuilds"] == straight["rebuilds"]
    for key in ("kept", "ranks", "step"):
        assert [row[key] for row in run["rows"]] == [row[key] for row in straight["rows"]], key
    losses, expected = ([row["loss"] for row in each["rows"]] for each in (run, straight))
    assert np.allclose(losses, expected, rtol=1e-5)
    assert run["held_out"] == pytest.approx(straight["held_out"], rel=1e-5)


@pytest.mark.parametrize("world", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_resumes_alike_on_other_ranks_and_stages(world: int, folder: Path, some: Runs) -> None:
    sources = {str(folder / "gradual3" / "checkpoint-3"): MODES["gradual"]}
    if world == 1:
        sources[str(folder / "mixed2" / "checkpoint-3")] = at(folder, MIXED)
        sources[str(folder / "gradual_whole3" / "checkpoint-1")] = GRADUAL_WHOLE
    stages = [(2, False), (3, True)] if world == 1 else [(0, False), (2, False), (3, False)]
    runs = multiprocess.run(world, "continued", {"folder": str(folder), "sources": sources, "stages": stages})
    assert len(runs) == len(sources) * len(stages)
    for name, run in runs.items():
        case = next(case for case in ("mixed2", "gradual_whole3", "gradual3") if case in name)
        alike(run, some[case]["straight"])
