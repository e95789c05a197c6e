"""Scores of section 3: the formula, and that no split of the batch changes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from apt_ds.data.batching import Batch, collate
from apt_ds.losses.task_losses import summed_loss
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices, kept_sizes
from apt_ds.pruning.activation_hooks import input_hook, output_hook
from apt_ds.pruning.fixed_order import in_order
from apt_ds.pruning.salience import Salience
from tests.support import tiny

CPU = torch.device("cpu")


def rows(count: int = 6) -> list[dict[str, list[int]]]:
    """Samples of different lengths, their first three tokens untrained."""
    examples = []
    for i in range(count):
        ids = tiny.ids(1, 6 + 2 * i, seed=i)[0].tolist()
        examples.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return examples


def prepared(
    outlier: str = "off", checkpointing: bool | None = None, product: str = "batch"
) -> tuple[LlamaForCausalLM, Anatomy, Salience]:
    """checkpointing: use_reentrant of gradient checkpointing, None for none."""
    model = tiny.model()
    anatomy = anatomy_of(model.config)
    adapter.attach(model, anatomy, ("q", "v"), 4, 0)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    model.train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    salience = Salience(anatomy, 0.85, outlier, 0.5, CPU, product)
    salience.install(model)
    return model, anatomy, salience


def score(model: LlamaForCausalLM, salience: Salience, split: list[list[dict[str, list[int]]]]) -> torch.Tensor:
    """Masses after the micro-batches of `split`."""
    for part in split:
        batch = collate(part, 0)
        salience.begin(batch.attention_mask, torch.float32)
        (summed_loss(model, batch) / 50).backward()
        salience.end()
    return salience.abs_sums.clone()


def reference_masses(model: LlamaForCausalLM, anatomy: Anatomy, batch: Batch) -> torch.Tensor:
    """The same sums by keeping every activation."""
    kept: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> None:
        x.requires_grad_() if x.is_leaf else x.retain_grad()
        kept.append(x)

    handles = [model.get_submodule(site.consumer).register_forward_pre_hook(input_hook(keep)) for site in anatomy.sites]
    for path in anatomy.writers:
        handles.append(model.get_submodule(path).register_forward_hook(output_hook(keep)))
    (summed_loss(model, batch) / 50).backward()
    for handle in handles:
        handle.remove()
    real = batch.attention_mask.bool()
    sums = [torch.stack([x.detach()[real].abs().sum(0), x.grad[real].abs().sum(0)]) for x in kept]
    # forward order is embedding, then (site input, site output) for every site
    embedding, rest = sums[0], sums[1:]
    assert len(rest) == 2 * len(anatomy.sites)
    return torch.cat([*rest[0::2], embedding, *rest[1::2]], dim=1)


def test_masses_are_sums_over_real_tokens() -> None:
    model, anatomy, salience = prepared()
    masses = score(model, salience, [rows()])
    salience.remove()
    expected = reference_masses(model, anatomy, collate(rows(), 0))
    assert torch.allclose(masses, expected, rtol=1e-4, atol=1e-6)
    assert masses.min() > 0


def test_products_of_examples_are_sums_of_what_each_gives_alone() -> None:
    model, _, salience = prepared(product="per_example")
    sums = score(model, salience, [rows()])
    salience.remove()
    expected = torch.zeros_like(sums[1])
    for row in rows():
        model, _, other = prepared()
        signed = torch.zeros_like(expected)

        def watch(number: int, x: torch.Tensor, into: torch.Tensor = signed, places: list[slice] = other.places) -> Any:
            def commit(gradient: torch.Tensor) -> None:
                into[places[number]] += (x * gradient).sum(dim=(0, 1))

            return commit

        other.watch = watch
        score(model, other, [[row]])
        expected += signed.abs()
    assert torch.allclose(sums[1], expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(sums[0], score(*prepared()[::2], [rows()])[0], rtol=1e-4)
    assert (sums[1] <= sums[0] * score(*prepared()[::2], [rows()])[1]).all()
    salience.update(gradient_scale=2.0)
    totals = torch.zeros(len(salience.average)).index_add_(0, salience.owner, expected)
    assert np.allclose(salience.scores(), 0.15 * 2 * totals.numpy(), rtol=1e-4)


@pytest.mark.parametrize("product", ["batch", "per_example"])
@pytest.mark.parametrize("split", [[2, 4], [1, 1, 1, 3], [6]])
def test_no_micro_batch_split_changes_the_masses(split: list[int], product: str) -> None:
    whole = score(*prepared(product=product)[::2], [rows()])
    parts, data = [], rows()
    for size in split:
        parts.append(data[:size])
        data = data[size:]
    assert torch.allclose(score(*prepared(product=product)[::2], parts), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("product", ["batch", "per_example"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_counts_once(use_reentrant: bool, product: str) -> None:
    plain = score(*prepared(product=product)[::2], [rows()])
    again = score(*prepared(checkpointing=use_reentrant, product=product)[::2], [rows()])
    assert torch.allclose(again, plain, rtol=1e-4, atol=1e-6)


def test_block_scores_sum_over_dimensions_and_places() -> None:
    model, anatomy, salience = prepared()
    masses = score(model, salience, [rows()])
    salience.update(gradient_scale=1.0)
    product = masses[0] * masses[1]
    heads = product[: 2 * 16].view(2, 16).sum(1)  # two groups of two query heads of 8 dimensions
    where = dict(block_slices(anatomy.sizes))
    scores = torch.from_numpy(salience.scores() / 0.15).float()
    assert torch.allclose(scores[where[0]], heads, rtol=1e-4)
    assert torch.allclose(scores[where[1]], product[32:80], rtol=1e-4)
    places = product[2 * (32 + 48) :].view(5, 32).sum(0)
    assert torch.allclose(scores[where[HIDDEN]], places, rtol=1e-4)


def test_moving_average_and_discard() -> None:
    model, _, salience = prepared()
    score(model, salience, [rows()])
    salience.update(1.0)
    first = salience.scores()
    salience.abs_sums.fill_(float("nan"))
    salience.discard()
    assert np.array_equal(salience.scores(), first)
    salience.update(1.0)
    assert np.allclose(salience.scores(), 0.85 * first)


def calibrated(outlier: str, steps: int, mean: bool = True) -> tuple[LlamaForCausalLM, Salience, list[torch.Tensor]]:
    """A scorer after `steps` batches with weights at rest, and the masses of each."""
    model, _, salience = prepared(outlier)
    salience.mean, seen = mean, []
    salience.refresh()
    for step in range(steps):
        seen.append(score(model, salience, [rows()[step : step + 2]]))
        if salience.stale:
            salience.measure_outliers(model)
        salience.update(1.0)
    return model, salience, seen


def test_calibration_takes_the_plain_mean_of_its_batches() -> None:
    model, salience, seen = calibrated("off", 4)
    salience.conclude(model)
    sums = sum(masses[0] * masses[1] for masses in seen) / 4
    expected = torch.zeros(len(salience.average)).index_add_(0, salience.owner, sums)
    assert np.allclose(salience.scores(), expected.numpy(), rtol=1e-5)
    assert not np.allclose(salience.scores(), calibrated("off", 4, mean=False)[1].scores(), rtol=0.1)


@pytest.mark.parametrize("outlier", ["literal", "normalized"])
def test_kurtosis_after_calibration_takes_the_activations_of_all_batches(outlier: str) -> None:
    model, salience, seen = calibrated(outlier, 3)
    assert not salience.outliers.any()  # measured once, when scores are used
    first_order = salience.average.clone()
    salience.conclude(model)
    other = prepared(outlier)[2]
    other.measure_outliers(model, sum(masses[0] for masses in seen))
    assert torch.allclose(salience.outliers, other.outliers, rtol=1e-5) and other.outliers.any()
    assert torch.allclose(salience.average, other.combine(first_order), rtol=1e-5)
    # the score of every batch is linear: their mean is the score of the mean
    parts = [torch.zeros_like(first_order).index_add_(0, other.owner, masses[0] * masses[1]) for masses in seen]
    assert torch.allclose(salience.average, sum(map(other.combine, parts)) / 3, rtol=1e-4)


def test_a_mean_begins_again_after_it_was_concluded_or_discarded() -> None:
    model, salience, _ = calibrated("off", 2)
    first = salience.scores()
    salience.abs_sums.fill_(float("nan"))
    salience.discard()
    assert np.array_equal(salience.scores(), first) and salience.count == 2
    salience.conclude(model)
    masses = score(model, salience, [rows()])
    salience.update(1.0)
    expected = torch.zeros(len(first)).index_add_(0, salience.owner, masses[0] * masses[1])
    assert np.allclose(salience.scores(), expected.numpy(), rtol=1e-5)


class HostReads(TorchDispatchMode):
    """Counts what would make the host wait for a device."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "bincount"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("outlier", ["off", "literal", "normalized"])
def test_scoring_never_makes_the_host_wait(outlier: str) -> None:
    counts = []
    for scoring in (False, True):
        model, _, salience = prepared(outlier)
        with HostReads() as reads:
            batch = collate(rows(), 0)
            if scoring:
                salience.begin(batch.attention_mask, torch.float32)
            summed_loss(model, batch).backward()
            salience.end()
            if scoring:
                salience.update(1.0)
        counts.append(reads.count)
    # the loss looks labels up, on the host; transformers asks once whether rows are packed
    assert counts[1] == counts[0] <= 4


def test_evaluation_is_not_scored() -> None:
    model, _, salience = prepared()
    with torch.no_grad():
        model(tiny.ids())
    model(tiny.ids()).logits.sum().backward()
    assert salience.abs_sums.abs().sum() == 0


def test_kurtosis_adds_as_its_option_says() -> None:
    first = torch.tensor([1.0, 3.0, 10.0])
    results = {}
    for outlier in ("off", "literal", "normalized"):
        _, _, salience = prepared(outlier)
        salience._set_kinds(torch.tensor([1, 1, 2]))
        salience.outliers = torch.tensor([4.0, 0.0, 5.0])
        results[outlier] = salience.combine(first).tolist()
    assert results["off"] == [1.0, 3.0, 10.0]
    assert results["literal"] == [3.0, 3.0, 12.5]
    # means: 2 and 2 for the first kind, 10 and 5 for the second
    assert results["normalized"] == pytest.approx([1 + 2.0, 3.0, 10 + 5.0])


def test_averages_follow_a_cut() -> None:
    model, anatomy, salience = prepared()
    score(model, salience, [rows()])
    salience.update(1.0)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    keep[[0, 5, -1]] = False
    before = salience.scores()
    salience.remove()
    salience.after_cut(anatomy.with_sizes(kept_sizes(anatomy.sizes, keep)), keep)
    assert np.array_equal(salience.scores(), before[keep])


def test_sums_in_order_leave_torch_as_it_was() -> None:
    for before in (False, True):
        torch.use_deterministic_algorithms(before)
        try:
            with pytest.raises(KeyError), in_order():
                assert torch.are_deterministic_algorithms_enabled()
                raise KeyError
            assert torch.are_deterministic_algorithms_enabled() is before
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        finally:
            torch.use_deterministic_algorithms(False)
