"""Sizes of a run next to their target."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import kept_sizes
from apt_ds.pruning import size_report
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.surgery import Plan
from tests.support import tiny

GRADUAL = {"pruning": "gradual", "structure": "adaptive", "sparsity": 0.4, "align": 4, "rank_growth": "none"}


def test_sizes_follow_a_cut() -> None:
    anatomy = anatomy_of(tiny.config("mha"))
    pruner = Pruner(RunConfig(**GRADUAL), anatomy, 100, torch.device("cpu"))
    whole = size_report.progress(pruner, 0)
    assert whole["kept"] == 1.0 and whole["target"] == pytest.approx(1.0)
    assert whole["kept_parameters"] == anatomy.num_parameters(anatomy.sizes)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    keep[0] = False
    smaller = anatomy.with_sizes(kept_sizes(anatomy.sizes, keep))
    pruner.follow(Plan(keep=keep), smaller, 1)
    report = size_report.summary(pruner)
    assert report["target_kept"] == 0.6 and report["align"] == 4
    assert report["prunable_parameters"] == smaller.num_parameters(smaller.sizes)
    assert report["kept"] == report["prunable_parameters"] / whole["kept_parameters"] < 1.0
    heads = report["layers"]["before"]["heads"], report["layers"]["after"]["heads"]  # type: ignore[index]
    assert [b - a for b, a in zip(*heads, strict=True)] == [1] + [0] * (len(anatomy.layers) - 1)
    # the schedule has reached its end
    assert size_report.progress(pruner, 100)["target"] == pytest.approx(0.6)
