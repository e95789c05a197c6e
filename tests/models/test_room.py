"""The parameters and bytes of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter
from apt_ds.models.base import Base, find_base
from apt_ds.models.room import adapter_parameters, bytes_written, count_parameters, run_dtype, written_dtype
from tests.support import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder: Path = tmp_path_factory.mktemp("room") / "model"
    return find_base(str(tiny.save_model(folder)))


def run_of(**flags: object) -> RunConfig:
    return RunConfig(model_name_or_path="m", data_path="d").replace(**flags)


def test_adapters_count_what_attach_makes_and_are_not_exported(base: Base) -> None:
    model = tiny.model()
    plain = count_parameters(model)
    run = run_of(adapter_targets="q,v,down", rank=5)
    adapter.attach(model, base.anatomy, run.targets, 5, 0)
    numel = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert adapter_parameters(base, run) == numel > 0
    assert count_parameters(model) == plain
    assert plain["checkpoint_bytes"] == 4 * plain["parameters"]
    ends = 2 * 32 * model.config.vocab_size
    assert plain["parameters"] - plain["parameters_without_embeddings"] == ends


def test_a_pruned_run_writes_less(base: Base) -> None:
    whole, half = (bytes_written(base, run_of(**flags)) for flags in ({"pruning": "none"}, {"sparsity": 0.5}))
    parameters = base.anatomy.num_parameters(base.anatomy.sizes)
    assert whole - half == parameters * 4 // 2


def test_weights_are_written_in_the_dtype_of_a_16_bit_run(base: Base) -> None:
    assert run_dtype(run_of()) == torch.float32 == written_dtype(base, run_of())
    assert run_dtype(run_of(bf16=True)) == torch.bfloat16 == written_dtype(base, run_of(bf16=True))
    assert run_dtype(run_of(fp16=True)) == torch.float16
