"""Hooks are where blocks may be removed, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apt_ds.analysis import memory_trace
from apt_ds.analysis.fake_batches import Shape
from apt_ds.config.resolve import resolve
from apt_ds.data.batching import collate
from apt_ds.losses.task_losses import summed_loss
from apt_ds.models import adapter, loading
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, block_slices, plural
from apt_ds.pruning.pruner import Pruner
from apt_ds.pruning.salience import Salience
from tests.support import tiny
from tests.support.paths import ROOT

CPU = torch.device("cpu")
ALL = ("heads", "neurons", "hidden")
CHOICES = (("heads", "neurons"), ("neurons",), ("hidden",), ALL)
WORDS = ["--deepspeed", str(ROOT / "ds_configs" / "zero2.json"), "--data_path", "none", "--pruning", "gradual"]


def scored(kinds: tuple[str, ...], outlier: str, checkpointing: bool = False) -> Salience:
    """A scorer after one step. Its hooks are on the model that is its attribute `model`."""
    model = tiny.model().train()
    anatomy = anatomy_of(model.config)
    adapter.attach(model, anatomy, ("q", "v"), 4, 0)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    salience = Salience(anatomy, 0.85, outlier, 0.5, CPU, "per_example", kinds=kinds)
    salience.install(model)
    batch = collate([{"input_ids": list(range(3, 3 + n)), "labels": list(range(3, 3 + n))} for n in (8, 5)], 0)
    salience.begin(batch.attention_mask, torch.float32)
    summed_loss(model, batch).backward()
    salience.end()
    if salience.stale:
        salience.measure_outliers(model)
    salience.model = model  # type: ignore[attr-defined]
    salience.update(1.0)
    return salience


@pytest.mark.parametrize("kinds", CHOICES, ids="-".join)
def test_only_modules_of_kinds_that_may_go_have_a_hook(kinds: tuple[str, ...]) -> None:
    salience = scored(kinds, "off")
    model, anatomy = salience.model, salience.anatomy  # type: ignore[attr-defined]
    for site in anatomy.sites:
        assert len(model.get_submodule(site.consumer)._forward_pre_hooks) == (plural(site.kind) in kinds)
    for path in anatomy.writers:
        assert len(model.get_submodule(path)._forward_hooks) == ("hidden" in kinds)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("outlier", ["off", "normalized", "literal"])
@pytest.mark.parametrize("kinds", CHOICES, ids="-".join)
def test_scores_of_kinds_that_may_go_are_the_same_and_others_are_0(
    kinds: tuple[str, ...], outlier: str, checkpointing: bool
) -> None:
    every, some = scored(ALL, outlier, checkpointing).scores(), scored(kinds, outlier, checkpointing)
    for site, span in block_slices(some.anatomy.sizes):
        expected = every[span] if plural(some.anatomy.kind(site)) in kinds else 0 * every[span]
        assert (some.scores()[span] == expected).all() and (every[span] > 0).any()


def test_a_run_hooks_the_kinds_that_compete() -> None:
    anatomy = anatomy_of(tiny.config("mha"))
    for kinds in CHOICES:
        flags = ["--model_name_or_path", "none", "--sparsity", "0.2", "--prune_blocks", ",".join(kinds)]
        scorer = Pruner(resolve([*WORDS, *flags]), anatomy, 20, CPU).scorer
        assert [kind for kind in ALL if kind in scorer.kinds] == list(kinds)
        assert scorer.observes(HIDDEN) == ("hidden" in kinds)


def test_activations_of_writers_are_not_kept_where_hidden_dimensions_stay(tmp_path: Path) -> None:
    """Each of the five writers of this model has an output of batch x length x hidden in fp32."""
    tiny.save_model(tmp_path / "model")
    base = loading.find_base(str(tmp_path / "model"))
    shape = Shape(4, 64, 0, 256)

    def activations(blocks: str) -> int:
        words = [*WORDS, "--model_name_or_path", str(tmp_path / "model"), "--prune_blocks", blocks]
        return memory_trace.measure(base, resolve(words), shape, [shape], 2, False).activations

    output = 4 * 64 * base.config.hidden_size * 4
    saved = activations("heads,neurons,hidden") - activations("heads,neurons")
    assert len(base.anatomy.writers) == 5 and saved >= 3 * output
