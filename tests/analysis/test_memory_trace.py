"""The footprint of a model: what counts, compared with the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from apt_ds.analysis import memory_trace
from apt_ds.analysis.fake_batches import Shape
from apt_ds.config.resolve import resolve
from apt_ds.models import loading, quantization
from apt_ds.pruning.fisher import Fisher
from tests.support import tiny
from tests.support.paths import ROOT


def test_a_longer_batch_and_no_checkpointing_need_more(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none"]
    words += ["--model_name_or_path", str(tmp_path / "model")]
    base = loading.find_base(str(tmp_path / "model"))

    def activations(length: int, *more: str) -> int:
        shape = Shape(2, length, 0, 2 * length)
        return memory_trace.measure(base, resolve([*words, *more]), shape, [shape], 2, False).activations

    plain = activations(64)
    assert 1.9 < activations(128) / plain < 2.3
    assert activations(64, "--gradient_checkpointing") < plain
    assert 0.5 < activations(64, "--bf16") / plain < 1
    # what the dense model says of the trained tokens is there while the loss is made
    known = 2 * 64 * 64 * 6
    assert plain + known < activations(64, "--distill", "logits") < plain + 12 * known


def test_what_fisher_holds_until_the_cut_counts(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none"]
    words += ["--model_name_or_path", str(tmp_path / "model")]
    model, place, shape = tiny.model(), loading.find_base(str(tmp_path / "model")), Shape(2, 8, 0, 16)
    fisher = Fisher(place.anatomy, 2, torch.device("cpu"))
    fisher.install(model)
    fisher.begin(torch.ones(2, 8), torch.float32)
    model(tiny.ids()[:2, :8]).logits.sum().backward()
    fisher.remove()
    gram_bytes = sum(gram.nbytes for gram in fisher._grams.values())
    activations = {
        score: memory_trace.measure(place, resolve([*words, *more]), shape, [shape], 2, False).activations
        for score, more in (("fisher", ["--score", "fisher"]), ("salience", []))
    }
    assert (
        len(fisher._grams) == len(place.anatomy.sites)
        and activations["fisher"] - activations["salience"] == gram_bytes > 0
    )


def test_gates_and_a_teacher_of_all_weights_count(tmp_path: Path) -> None:
    """A learned gate keeps what it multiplies. A teacher of a run that trains all weights is a copy of them."""
    tiny.save_model(tmp_path / "model")
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none", "--pruning", "gradual"]
    words += ["--model_name_or_path", str(tmp_path / "model"), "--rank_growth", "none"]
    base, shape = loading.find_base(str(tmp_path / "model")), Shape(2, 64, 0, 128)

    def footprint(*more: str) -> memory_trace.Footprint:
        run = resolve([*words, *more])
        return memory_trace.measure(base, run, shape, [shape], 2, run.optim.trainable == "all")

    assert footprint("--score", "l0").activations > footprint("--score", "random").activations
    plain, taught = (footprint("--train", "all", "--score", "l0", *more) for more in ([], ["--distill"]))
    weights = sum(4 * weight.numel for weight in plain.weights)
    assert taught.evaluation - plain.evaluation == pytest.approx(weights, rel=0.01)


def test_bits_of_the_base_count(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model", hidden_size=128, intermediate_size=256)
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none", "--bf16"]
    words += ["--model_name_or_path", str(tmp_path / "model")]
    base, shape = loading.find_base(str(tmp_path / "model")), Shape(1, 8, 0, 8)
    for bits in (4, 8):
        run = resolve([*words, "--base_bits", str(bits)])
        footprint = memory_trace.measure(base, run, shape, [shape], 2, False)
        parameters = dict(loading.load_model(base, run).named_parameters())
        packed = {w.name: w for w in footprint.weights if w.full}
        assert len(packed) == 14
        for name, weight in packed.items():
            parameter = parameters[name]
            assert (weight.numel, weight.full) == (parameter.numel(), parameter.full.numel()), name
            assert weight.scales == sum(part.nbytes for part in quantization.small_parts(parameter)), name


def test_modules_that_a_family_keeps_in_fp32_are_not_quantized(tmp_path: Path) -> None:
    """T5's `wo`: as loading the model shows."""
    sizes = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 1, "num_heads": 4, "vocab_size": 256}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none", "--bf16", "--task", "sst2"]
    words += ["--model_name_or_path", str(tmp_path / "model"), "--base_bits", "8"]
    base, run, shape = loading.find_base(str(tmp_path / "model"), "sst2"), resolve(words), Shape(1, 8, 8, 8)
    weights = {w.name: w for w in memory_trace.measure(base, run, shape, [shape], 2, False).weights}
    loaded = dict(loading.load_model(base, run).named_parameters())
    quantized = {name for name, parameter in loaded.items() if hasattr(parameter, "full")}
    assert quantized and not any(".wo." in name for name in quantized)
    assert {name for name, weight in weights.items() if weight.full} == quantized
    for name, parameter in loaded.items():
        assert weights[name].numel == parameter.numel(), name


@pytest.mark.parametrize("trained", [8, 128])
def test_a_gpu_works_in_larger_pieces(tmp_path: Path, trained: int) -> None:
    """A CPU turns 2^19 logits to fp32 at a time, a GPU 2^25: all of these 2^21, unless there are few."""
    vocabulary = 16_000
    tiny.save_model(tmp_path / "model", vocab_size=vocabulary)
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none", "--pruning", "none"]
    base = loading.find_base(str(tmp_path / "model"))
    run = resolve([*words, "--model_name_or_path", str(tmp_path / "model"), "--gradient_checkpointing"])
    shape = Shape(2, 64, 0, trained)
    peaks = {
        device: memory_trace.measure(base, run, shape, [shape], 2, False, device).activations
        for device in ("cpu", "cuda")
    }
    pieces = 4 * (trained * vocabulary - min(trained * vocabulary, 1 << 19))
    assert (peaks["cuda"] - peaks["cpu"] > pieces / 2) if pieces else peaks["cuda"] == peaks["cpu"]
