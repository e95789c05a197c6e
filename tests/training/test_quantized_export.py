"""A run with --export_quantization writes a second folder and says what it costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from apt_ds.training.summary_schema import Summary
from tests.support import tiny
from tests.support.launcher import PRETUNING, Place, Run, launch
from tests.support.paths import ROOT
from tests.training.test_summary_schema import mismatches

pytest.importorskip("compressed_tensors")
NEURONS = ["--prune_blocks", "neurons", "--max_steps", "3", "--report", "false"]


def test_the_copy_is_measured_beside_the_model(place: Place, tmp_path: Path, run: Run) -> None:
    ended = run(place.words(tmp_path / "out", *PRETUNING, *NEURONS, "--export_quantization", "fp8"))
    assert ended.status == 0, ended.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf8"))
    assert mismatches(summary, Summary) == []
    figures = summary["quantized"]
    assert figures["held_out_loss_before"] == pytest.approx(summary["after"]["held_out_loss"], abs=1e-4)
    assert 0 < abs(figures["held_out_loss"] - figures["held_out_loss_before"]) < 0.2
    assert f"quantized copy: model-fp8 ({figures['checkpoint_bytes'] / 1e6:,.1f} MB)" in ended.out
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name).eval()(tiny.ids()).logits
            for name in ("model", "model-fp8")
        ]
    assert (logits[1] - logits[0]).norm() / logits[0].norm() < 0.3


def test_sizes_that_do_not_fit_end_the_run_after_its_report(place: Place, tmp_path: Path, run: Run) -> None:
    ended = run(place.words(tmp_path / "out", *PRETUNING, *NEURONS, "--export_quantization", "w4a16"))
    assert ended.status == 2
    assert "w4a16 needs rows of a multiple of 32" in ended.err and "The model itself is in" in ended.err
    assert (tmp_path / "out" / "summary.json").is_file() and (tmp_path / "out" / "model").is_dir()
    assert not (tmp_path / "out" / "model-w4a16").exists()


def test_two_ways_to_quantize_are_refused_at_once(place: Place, tmp_path: Path, run: Run) -> None:
    words = ["--base_bits", "8", "--export_bits", "8", "--export_quantization", "fp8"]
    ended = run(place.words(tmp_path / "out", *PRETUNING, *NEURONS, *words))
    assert ended.status == 2 and "leave out --export_bits 8" in ended.err and not (tmp_path / "out").exists()


@pytest.mark.serving
@pytest.mark.dist
def test_two_ranks_measure_what_one_does(place: Place, tmp_path: Path) -> None:
    """Under ZeRO-3 each rank loads the folders whole and evaluates its share."""
    losses = []
    for ranks in (1, 2):
        words = [*PRETUNING, *NEURONS, "--export_quantization", "fp8", "--per_device_train_batch_size", str(2 // ranks)]
        output = tmp_path / str(ranks)
        done = launch(ranks, place.words(output, *words, deepspeed=ROOT / "ds_configs" / "zero3.json"))
        assert done.status == 0, done.err
        figures = json.loads((output / "summary.json").read_text(encoding="utf8"))["quantized"]
        losses.append((figures["held_out_loss_before"], figures["held_out_loss"]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
