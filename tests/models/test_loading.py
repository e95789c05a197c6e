"""What a run loads its model with."""

from __future__ import annotations

from pathlib import Path

import pytest

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
