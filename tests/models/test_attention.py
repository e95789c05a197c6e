"""Which attention packed rows use, as a function of machine, model and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma2Config

from apt_ds.config.errors import UserError
from apt_ds.config.option_groups import FLASH, VARLEN
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import REGISTRY
from apt_ds.models.attention import Machine, assume, choose, failure, machine_of, resolve
from tests.support import tiny

CPU = torch.device("cpu")
HOPPER = Machine("cuda", (9, 0), varlen=True)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("asked", "machine", "dtype", "changes", "name", "why"),
    [
        ("sdpa", HOPPER, BF16, {}, VARLEN, "of PyTorch"),
        ("sdpa", HOPPER, FP16, {}, VARLEN, "of PyTorch"),
        ("sdpa", Machine("cuda", (8, 0), varlen=True, flash_attn=True), BF16, {}, VARLEN, "of PyTorch"),
        ("sdpa", Machine("cuda", (8, 0), flash_attn=True), BF16, {}, FLASH, "of flash-attn"),
        ("sdpa", Machine("cuda", (8, 0)), BF16, {}, "sdpa", "neither PyTorch nor flash-attn has"),
        ("sdpa", Machine("cuda", (7, 5), True, True), FP16, {}, "sdpa", "capability 7.5 has no flash kernel"),
        ("sdpa", HOPPER, FP32, {}, "sdpa", "needs --bf16 or --fp16"),
        ("sdpa", Machine("cpu"), BF16, {}, "sdpa", "type cpu has no variable-length kernel"),
        ("sdpa", HOPPER, BF16, {"head_dim": 512}, "sdpa", "heads of size 512"),
        ("sdpa", HOPPER, BF16, {"head_dim": 20}, "sdpa", "heads of size 20"),
        ("sdpa", HOPPER, BF16, {"attention_dropout": 0.1}, "sdpa", "drops attention weights"),
        ("sdpa", HOPPER, BF16, {"attn_logit_softcapping": 50.0}, "sdpa", "caps its attention scores"),
        ("eager", HOPPER, BF16, {}, "eager", "as --attn_implementation says"),
        (FLASH, Machine("cpu"), FP32, {}, FLASH, "as --attn_implementation says"),
        (VARLEN, Machine("cpu"), FP32, {}, VARLEN, "as --attn_implementation says"),
    ],
)
def test_machine_dtype_and_model_choose_the_kernel(
    asked: str, machine: Machine, dtype: torch.dtype, changes: dict[str, Any], name: str, why: str
) -> None:
    choice = choose(asked, dtype, tiny.config("gqa", **changes), machine)
    assert choice.name == name and why in choice.why


def test_a_family_that_caps_its_scores_refuses_the_kernel() -> None:
    spec = REGISTRY["gemma2"]
    with pytest.raises(UserError, match="--attn_implementation varlen: architecture 'gemma2' caps its attention"):
        spec.attention(Gemma2Config(), VARLEN)
    assert spec.attention(Gemma2Config(), "sdpa") == "eager"


def packed(**flags: object) -> RunConfig:
    return RunConfig(packing=True, **flags)


def test_a_device_that_chooses_its_kernel_packs_rows_like_one_that_was_told() -> None:
    run = packed(attn_implementation="auto")
    assert assume(run, tiny.config("gqa"), BF16, on_gpu=True).model.attn_implementation == VARLEN
    assert assume(run, tiny.config("gqa"), BF16, on_gpu=False).model.attn_implementation == "eager"
    assert resolve(run, tiny.config("gqa"), FP32, CPU).model.attn_implementation == "eager"


def test_the_choice_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = resolve(packed(), tiny.config("gqa"), FP32, CPU)
    assert run.model.attn_implementation == "sdpa" and not run.model.one_row
    printed = capsys.readouterr().err
    assert printed == (
        "attention of packed rows: sdpa, a dense mask, since a device of type cpu has no variable-length kernel\n"
    )
    run = resolve(packed(attn_implementation=VARLEN), tiny.config("gqa"), FP32, CPU)
    assert run.model.attn_implementation == VARLEN and run.model.one_row
    assert capsys.readouterr().err == "attention of packed rows: varlen, as --attn_implementation says\n"
    apart = RunConfig()
    assert resolve(apart, tiny.config("gqa"), FP32, CPU) is apart and not capsys.readouterr().err


@pytest.mark.parametrize(
    ("on_gpu", "dtype", "name"), [(True, BF16, VARLEN), (True, FP32, "sdpa"), (False, BF16, "sdpa")]
)
def test_an_estimate_assumes_a_recent_gpu(on_gpu: bool, dtype: torch.dtype, name: str) -> None:
    assert assume(packed(), tiny.config("gqa"), dtype, on_gpu).model.attn_implementation == name


def test_a_kernel_that_a_device_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--attn_implementation varlen: .* type meta .*; give sdpa$"):
        resolve(packed(attn_implementation=VARLEN), tiny.config("gqa"), BF16, torch.device("meta"))


def test_a_processor_is_a_machine_without_a_gpu() -> None:
    assert machine_of(CPU) == Machine("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_runs_the_kernel_that_is_chosen() -> None:
    device, config = torch.device("cuda", 0), tiny.config("gqa")
    assert failure(config, BF16, device) == ""
    assert choose("sdpa", BF16, config, machine_of(device)).name == VARLEN
