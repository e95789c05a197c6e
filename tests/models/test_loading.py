"""What a run loads its model with."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path

import pytest
import torch

from apt_ds.analysis import memory_trace
from apt_ds.analysis.live_bytes import fake
from apt_ds.config.resolve import resolve
from apt_ds.models import loading
from apt_ds.models.attention import kernel_of
from tests.support import tiny
from tests.support.paths import ROOT

WORDS = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--preset", "quickstart"]


def test_the_quickstart_lets_the_device_choose_the_attention_kernel(tmp_path: Path) -> None:
    tiny.save_model(tmp_path / "model")
    run = resolve([*WORDS, "--model_name_or_path", str(tmp_path / "model")])
    assert run.model.attn_implementation == "auto"
    base = loading.find_base(str(tmp_path / "model"))
    assert loading.load_model(base, run).config._attn_implementation == "eager"
    # as an estimate for a GPU takes it
    with fake():
        assert memory_trace.skeleton(base, run, "cuda").config._attn_implementation == "sdpa"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flash_attention_2"])
def test_a_stated_kernel_is_used_everywhere(kernel: str, device: str) -> None:
    assert kernel_of(resolve([*WORDS, "--attn_implementation", kernel]), device) == kernel


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_are_in_memory_once(bits: int, alone: None, tmp_path: Path) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("the package bitsandbytes is not installed")
    folder = tiny.save_model(tmp_path / "base", hidden_size=128, intermediate_size=256, num_attention_heads=4)
    run = resolve([*WORDS, "--model_name_or_path", str(folder), "--base_bits", str(bits)])
    gc.collect()
    gc.disable()
    try:
        before = bytes_of_tensors()
        model = loading.load_model(loading.find_base(str(folder)), run)
        loaded_bytes = bytes_of_tensors() - before
    finally:
        gc.enable()
    projections = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "_proj" in name)
    rest = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "_proj" not in name)
    # the scales of the quantization are a few hundredths of the projections
    assert projections + rest <= loaded_bytes < 1.2 * projections + rest


def bytes_of_tensors() -> int:
    """Bytes of all tensors in this process."""
    tensors = (each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.device.type == "cpu")
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
