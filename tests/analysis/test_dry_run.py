"""The estimate of memory: its arithmetic, its table, and how near it comes to what runs take."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from apt_ds.analysis import batch_bounds, dry_run, memory_trace
from apt_ds.analysis.memory_estimate import Estimate
from apt_ds.config.errors import UserError
from apt_ds.config.resolve import resolve
from apt_ds.models import loading
from tests.support import multiprocess, tiny
from tests.support.paths import ROOT


def small_run(folder: Path, config: str = "zero2.json") -> list[str]:
    """The words of a dry run of the tiny model on its data, which are written to the folder."""
    tiny.save_model(folder / "model")
    tiny.save_data(folder / "data.json")
    words = ["--dry_run", "--model_name_or_path", str(folder / "model"), "--data_path", str(folder / "data.json")]
    words += ["--eval_size", "4", "--max_steps", "2", "--output_dir", str(folder / "out")]
    return [*words, "--deepspeed", str(ROOT / "ds_configs" / config)]


def test_what_quantized_weights_do_not_support_is_named_without_a_device(
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


def test_sizes_that_cannot_be_served_are_named_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tensor_parallel 8"):
        dry_run.dry_run(resolve([*small_run(tmp_path), "--tensor_parallel", "8"]))


def test_the_table_needs_no_weights_and_ends_in_a_verdict(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*small_run(tmp_path, "zero3_offload.json"), "--world_size", "16"]
    (tmp_path / "model" / "model.safetensors").unlink()
    for more, verdict in (
        (["--device_memory", "80", "--fp16"], "fits: a device 0."),
        (["--device_memory", "0.001"], "does not fit: a device needs"),
        (["--host_memory", "0.1"], "does not fit: the host needs"),
    ):
        dry_run.dry_run(resolve([*words, *more]))
        out = capfd.readouterr().out.splitlines()
        # only a GPU pins memory
        rounding = ["rounding"] if more[0] == "--device_memory" else []
        start = len(out) - 18 - len(rounding)
        assert "of 16 ranks" in out[start] and out[-1].startswith(verdict), out
        assert [line.split()[0] for line in out[start + 2 : -10]] == [
            *("frozen", "trained", "gradients", "optimizer", "gathered", "activations", *rounding)
        ]
    assert not (tmp_path / "out").exists()


def test_a_run_that_removes_nothing_needs_what_a_run_without_pruning_needs(tmp_path: Path) -> None:
    """No hook scores blocks, no mask is between 0 and 1, and no gradient of all weights is kept."""
    words = [*small_run(tmp_path), "--repair", "none"]
    inputs = dry_run.files(resolve(words))

    def estimate(*more: str) -> Estimate | None:
        return dry_run.dry_run(resolve([*words, *more]), lambda _: inputs)

    unpruned = estimate("--pruning", "none")
    scores = [("pretuning", "salience"), ("pretuning", "fisher"), ("pretuning", "taylor"), ("gradual", "salience")]
    for mode, score in scores:
        flags = ("--pruning", mode, "--score", score)
        assert estimate(*flags) != unpruned, flags
        assert estimate(*flags, "--sparsity", "0") == unpruned, flags


def test_gradual_pruning_with_repair_has_no_soft_masks(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    words = ["--model_name_or_path", str(tmp_path / "model"), "--deepspeed", str(ROOT / "ds_configs" / "zero2.json")]
    base = loading.find_base(str(tmp_path / "model"))
    for flags, soft in (([], True), (["--score", "l0"], True), (["--repair", "ls"], False)):
        run = resolve([*words, "--data_path", "none", "--pruning", "gradual", *flags])
        assert bool((memory_trace.half_masked(base, run).values == 0.5).any()) == soft, flags


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
    sizes = multiprocess.run(ranks, "fault_injection.memory", {"flags": words}, timeout=900, fresh=True)
    print(
        f"\n{name}: estimated {sizes['estimated'] / 1e6:,.0f} MB, measured {sizes['measured'] / 1e6:,.0f} MB", end=" "
    )
    assert abs(sizes["estimated"] / sizes["measured"] - 1) < 0.15, sizes


def test_a_stream_counts_as_full_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*small_run(tmp_path), "--max_seq_length", "60", "--per_device_train_batch_size", "3"]
    streaming = resolve([*words, "--streaming"])
    assert batch_bounds.stream_bound(streaming) == (3, 64, 0, 3 * 59)
    packed = streaming.replace(packing=True, attn_implementation="varlen")
    assert batch_bounds.stream_bound(packed) == (1, 184, 0, 3 * 59)
    estimates = [dry_run.dry_run(run) for run in (resolve(words), streaming)]
    assert estimates[0] is not None and estimates[1] is not None
    # the examples of the file are shorter than 60 tokens
    assert estimates[1].total() > estimates[0].total()
    repairs = [estimate.phases["repair"].device for estimate in estimates if estimate]
    assert repairs[1] > repairs[0] > estimates[0].phases["rebuild"].device
    plain = dry_run.dry_run(resolve([*words, "--repair", "none"]))
    assert plain is not None and "repair" not in plain.phases
    assert "fits: the host" in capfd.readouterr().out


def test_the_disk_of_a_dense_teacher_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*small_run(tmp_path), "--distill", "logits", "--teacher_cache", str(tmp_path / "deep" / "cache")]
    run = resolve(words)
    base, data = dry_run.files(run)
    read = dry_run.dense_tokens.rows_read(data.order, 2, len(data.train))
    tokens = sum(label != -100 for number in read for label in data.train[int(number)]["labels"][1:])
    assert len(read) == 8 and dry_run.dry_run(run, lambda _: (base, data)) is not None
    megabytes = f"{(384 * tokens + 16 * 8) / 1e6:,.1f}"
    line = (
        f"--distill logits: {tokens} trained tokens need {megabytes} MB of the disk of every node under {tmp_path}/deep"
    )
    assert line in capfd.readouterr().out and not (tmp_path / "deep").exists()
    live = dry_run.dry_run(run.replace(teacher_source="live", teacher_cache=""), lambda _: (base, data))
    assert live is not None and "MB of the disk" not in capfd.readouterr().out
    assert live.parts["dense teacher"].device == 4 * sum(p.numel() for p in tiny.model().parameters())
