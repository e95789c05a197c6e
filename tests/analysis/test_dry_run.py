"""The estimate of memory: its arithmetic, its table, and how near it comes to what runs take."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from apt_ds.analysis import dry_run, memory_trace
from apt_ds.analysis.live_bytes import LiveBytes
from apt_ds.analysis.memory_estimate import CODE, FINGERPRINT, MOMENTS_IN_8_BITS, estimate
from apt_ds.analysis.memory_trace import Footprint, Shape, Weight
from apt_ds.analysis.sharding import Bytes, Layout
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.models import quantization
from apt_ds.pruning.fisher import Fisher
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT

MODEL = Footprint((Weight("w", 10_000_000, False), Weight("a", 1_000_000, True)), 5_000, 3_000, 10_000_000)
BF16 = Layout(4, 2, 4)


def test_weights_and_moments_by_stage() -> None:
    parts = {stage: estimate(MODEL, {"zero_optimization": {"stage": stage}}, BF16).parts for stage in (0, 2, 3)}
    assert parts[0]["optimizer"] == Bytes(8_000_000), "moments of all; there is no master"
    assert parts[2]["optimizer"] == Bytes(12 * 250_000) == parts[3]["optimizer"]
    assert parts[0]["frozen weights"] == parts[2]["frozen weights"] == Bytes(20_000_000)
    assert parts[3]["frozen weights"] == Bytes(5_000_000) and parts[3]["trained weights"] == Bytes(500_000)
    assert parts[2]["gathered weights"] == Bytes(0) and parts[3]["gathered weights"] == Bytes(22_000_000)
    # the bucket, a share of the gradients, their fp32 copy
    assert parts[2]["gradients"] == Bytes(2_000_000 + 500_000 + 1_000_000)
    assert parts[0]["gradients"] == Bytes(2 * 2_000_000)


def test_offload_moves_to_the_host_and_limits_hold() -> None:
    section = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    limits = {"stage3_max_live_parameters": 0, "stage3_param_persistence_threshold": 1_000_000}
    found = estimate(MODEL, {"zero_optimization": section | limits}, BF16)
    assert found.parts["optimizer"] == Bytes(0, 12 * 250_000)
    assert found.parts["frozen weights"] == Bytes(0, 5_000_000)
    # what persists, and the largest module
    assert found.parts["gathered weights"] == Bytes(22_000_000)
    far = Footprint((*[Weight(f"w{i}", 1_000_000, False) for i in range(9)], MODEL.weights[1]), 0, 0, 1_000_000)
    limits["stage3_param_persistence_threshold"] = 0
    assert estimate(far, {"zero_optimization": section | limits}, BF16).parts["gathered weights"] == Bytes(2_000_000)
    near = limits | {"stage3_max_live_parameters": 3_000_000}
    assert estimate(far, {"zero_optimization": section | near}, BF16).parts["gathered weights"] == Bytes(6_000_000)


def test_a_base_of_few_bits() -> None:
    thin = Weight("w", 10_000_000 // 4, False, full=10_000_000, scales=160_000)
    model = Footprint((thin, MODEL.weights[1]), 5_000, 3_000, 2_500_000)
    found = {
        stage: estimate(model, {"zero_optimization": {"stage": stage}}, BF16._replace(kept=0.5)) for stage in (2, 3)
    }
    assert found[2].parts["frozen weights"] == Bytes(5_160_000), "half a byte each, and the scales"
    assert found[3].parts["frozen weights"] == Bytes(1_250_000 + 160_000), "scales are whole on every rank"
    assert found[2].parts["activations"] == Bytes(20_000_000 + 5_000), "one weight as it computes"
    # read whole by every rank, from files in fp32
    assert found[3].phases["loading"] == Bytes(7_160_000, 44_000_000)
    assert found[2].phases["writing"].host - CODE == 11_000_000, "written in bf16"
    eight = BF16._replace(moments=MOMENTS_IN_8_BITS)
    parts = estimate(MODEL, {"zero_optimization": {"stage": 2}}, eight).parts
    assert parts["optimizer"] == Bytes(4 * 250_000 + round((2 + 1 / 32) * 250_000))


def test_phases() -> None:
    found = estimate(MODEL, {"zero_optimization": {"stage": 2}}, BF16._replace(kept=0.5))
    assert found.phases["step"] == Bytes(sum(part.device for part in found.parts.values()), CODE)
    assert found.phases["loading"] == Bytes(22_000_000, 44_000_000 + 22_000_000), "files in fp32, and a copy in bf16"
    assert found.phases["fingerprint"] == Bytes(22_000_000 + FINGERPRINT)
    assert found.phases["saving"] == Bytes(22_000_000 + 3_000_000, 12_000_000 + CODE), "what the first rank writes"
    assert found.phases["rebuild"] == Bytes(22_000_000 + 40_000_000, 12_000_000 + CODE)
    assert found.phases["writing"] == Bytes(11_000_000 + 20_000_000, 11_000_000 + CODE)
    assert found.peak() == Bytes(62_000_000, 66_000_000), "of the rebuild and of loading"
    assert found.total() == 62_000_000 + 12_000_000 + CODE


def test_what_is_alive_is_counted_once_and_forgotten() -> None:
    model = nn.Linear(8, 8, bias=False).requires_grad_(False)
    with LiveBytes(model) as live:
        x = torch.zeros(100, 8)
        view = x.view(-1)
        y = model(x)
        assert live.now == 2 * 3200
        del x, view
        assert live.now == 3200
        del y
    assert live.now == 0 and live.peak == 6400


def test_a_longer_batch_and_no_checkpointing_need_more(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none"]
    words += ["--model_name_or_path", str(tmp_path / "model")]
    base = dry_run.loading.find_base(str(tmp_path / "model"))

    def activations(length: int, *more: str) -> int:
        shape = Shape(2, length, 0, 2 * length)
        return memory_trace.measure(base, resolve([*words, *more]), shape, [shape], 2, False).activations

    plain = activations(64)
    assert 1.9 < activations(128) / plain < 2.3
    assert activations(64, "--gradient_checkpointing") < plain
    assert 0.5 < activations(64, "--bf16") / plain < 1


def test_what_fisher_holds_until_the_cut_counts(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none"]
    words += ["--model_name_or_path", str(tmp_path / "model")]
    model, place, shape = tiny.model(), dry_run.loading.find_base(str(tmp_path / "model")), Shape(2, 8, 0, 16)
    fisher = Fisher(place.anatomy, 2, torch.device("cpu"))
    fisher.install(model)
    fisher.begin(torch.ones(2, 8), torch.float32)
    model(tiny.ids()[:2, :8]).logits.sum().backward()
    fisher.remove()
    held = sum(gram.nbytes for gram in fisher._grams.values())
    found = {
        score: memory_trace.measure(place, resolve([*words, *more]), shape, [shape], 2, False).activations
        for score, more in (("fisher", ["--score", "fisher"]), ("salience", []))
    }
    assert len(fisher._grams) == len(place.anatomy.sites) and found["fisher"] - found["salience"] == held > 0


def test_what_few_bits_cannot_do_is_named_without_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.save_data(tmp_path / "data.json")
    words = ["--dry_run", "--data_path", str(tmp_path / "data.json"), "--eval_size", "4", "--max_steps", "2"]
    words += ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--base_bits", "4", "--bf16"]
    for name, sizes in (("odd", {}), ("even", {"hidden_size": 128, "intermediate_size": 256})):
        tiny.save_model(tmp_path / name, **sizes)
        words += ["--model_name_or_path", str(tmp_path / name), "--output_dir", str(tmp_path / "out")]
        if name == "odd":
            with pytest.raises(UserError, match="no multiple of 64"):
                dry_run.dry_run(resolve([*words, "--device_memory", "80"]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    dry_run.dry_run(resolve([*words, "--prune_blocks", "neurons", "--device_memory", "80"]))
    assert capfd.readouterr().out.splitlines()[-1].startswith("fits: a device ")
    with pytest.raises(UserError, match="needs bitsandbytes"):
        dry_run.dry_run(resolve([*words, "--prune_blocks", "neurons"]))


def test_bits_of_the_base_count(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model", hidden_size=128, intermediate_size=256)
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none", "--bf16"]
    words += ["--model_name_or_path", str(tmp_path / "model")]
    base, shape = dry_run.loading.find_base(str(tmp_path / "model")), Shape(1, 8, 0, 8)
    for bits in (4, 8):
        run = resolve([*words, "--base_bits", str(bits)])
        found = memory_trace.measure(base, run, shape, [shape], 2, False)
        held = dict(dry_run.loading.load_model(base, run).named_parameters())
        packed = {w.name: w for w in found.weights if w.full}
        assert len(packed) == 14
        for name, weight in packed.items():
            parameter = held[name]
            assert (weight.numel, weight.full) == (parameter.numel(), parameter.full.numel()), name
            assert weight.scales == sum(part.nbytes for part in quantization.small_parts(parameter)), name


def test_the_table_needs_no_weights_and_ends_in_a_verdict(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny.save_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    tiny.save_data(tmp_path / "data.json")
    words = ["--dry_run", "--model_name_or_path", str(tmp_path / "model"), "--data_path", str(tmp_path / "data.json")]
    words += ["--eval_size", "4", "--max_steps", "2", "--output_dir", str(tmp_path / "out")]
    words += ["--deepspeed", str(ROOT / "ds_configs" / "zero3_offload.json"), "--world_size", "16"]
    for more, verdict in (
        (["--device_memory", "80", "--fp16"], "fits: a device 0."),
        (["--device_memory", "0.001"], "does not fit: a device needs"),
        (["--host_memory", "0.1"], "does not fit: the host needs"),
    ):
        dry_run.dry_run(resolve([*words, *more]))
        out = capfd.readouterr().out.splitlines()
        assert "of 16 ranks" in out[-17] and out[-1].startswith(verdict), out
        assert [line.split()[0] for line in out[-15:-9]] == [
            *("frozen", "trained", "gradients", "optimizer", "gathered", "activations")
        ]
    assert not (tmp_path / "out").exists()


# name: (model, DeepSpeed section, ranks, flags)
MEASURED = {
    "wide fp32 stage 0": ("wide", {"stage": 0}, 1, []),
    "wide bf16 stage 2": ("wide", {"stage": 2}, 1, ["--bf16"]),
    "wide bf16 stage 3, two ranks": ("wide", {"stage": 3}, 2, ["--bf16"]),
    "wide fp32 stage 3, offload": (
        "wide",
        {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
        1,
        [],
    ),
    "SmolLM2 fp32 stage 2, checkpointing": ("smollm2", {"stage": 2}, 1, ["--gradient_checkpointing"]),
    "SmolLM2 bf16 stage 2": ("smollm2", {"stage": 2}, 1, ["--bf16"]),
    # the second pass finds all that the first has summed
    "SmolLM2 bf16 stage 2, lora_prune": (
        "smollm2",
        {"stage": 2},
        1,
        ["--bf16", "--method", "lora_prune", "--calibration_steps", "2"],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 119 million weights and answers of one length."""
    place = tmp_path_factory.mktemp("memory")
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
    tiny.save_model(place / "wide", **sizes, num_key_value_heads=16, vocab_size=8000, max_position_embeddings=512)
    text = " ".join(tiny.WORDS)
    records = [{"instruction": f"{text} {text}", "input": "", "output": f"{text} {text} {text}"}] * 24
    (place / "data.json").write_text(json.dumps(records))
    return place


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_within_15_percent(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glibc must return what is freed, or its habits are what is measured."""
    model, section, ranks, flags = MEASURED[name]
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    (folder / "config.json").write_text(json.dumps({"zero_optimization": section}))
    place = "builtin:smollm2" if model == "smollm2" else str(folder / model)
    words = ["--deepspeed", str(folder / "config.json"), "--model_name_or_path", place]
    words += ["--data_path", str(folder / "data.json"), "--output_dir", str(folder / "out"), "--overwrite_output_dir"]
    words += ["--eval_size", "8", "--max_steps", "2", "--per_device_train_batch_size", "4", "--calibration_steps", "1"]
    words += ["--report", "false", "--save_steps", "0", "--max_seq_length", "256", "--prune_blocks", "neurons", *flags]
    found = multiprocess.run(ranks, "fault_injection.memory", {"flags": words}, timeout=900, fresh=True)
    print(
        f"\n{name}: estimated {found['estimated'] / 1e6:,.0f} MB, measured {found['measured'] / 1e6:,.0f} MB", end=" "
    )
    assert abs(found["estimated"] / found["measured"] - 1) < 0.15, found
