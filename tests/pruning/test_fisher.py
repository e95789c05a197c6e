"""Fisher information of masks, and mask values that compensate for a cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from apt_ds.data.batching import Batch, collate
from apt_ds.losses.task_losses import summed_loss
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import block_slices
from apt_ds.pruning.fisher import Fisher, rearranged, tuned_masks
from tests.support import tiny

CPU = torch.device("cpu")


def observed(fisher: Fisher, model: torch.nn.Module, micros: list[tuple[int, Batch]]) -> None:
    for first, batch in micros:
        fisher.begin(batch.attention_mask, torch.float32, first)
        summed_loss(model, batch).backward()
        fisher.end()
    fisher.update(1.0)


def test_rows_are_the_gradients_of_the_masks_example_by_example() -> None:
    model = tiny.model()
    anatomy = anatomy_of(model.config)
    fisher = Fisher(anatomy, 4, CPU)
    fisher.install(model)
    observed(fisher, model, [(0, collate(tiny.rows(), 0))])
    fisher.remove()
    size = anatomy.sizes.total()
    for number, row in enumerate(tiny.rows()):
        mask = torch.ones(size, requires_grad=True)
        masked_loss(model, anatomy, mask, collate([row], 0)).backward()
        assert torch.allclose(torch.from_numpy(fisher.rows[0][number]), mask.grad, rtol=1e-3, atol=1e-5)
    assert np.allclose(fisher.scores(), np.square(fisher.rows[0].astype(np.float64)).sum(0))


def masked_loss(model: torch.nn.Module, anatomy: Any, mask: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The loss under differentiable masks on consumers' inputs and writers' outputs."""
    where = dict(block_slices(anatomy.sizes))
    handles = []
    for number, site in enumerate(anatomy.sites):
        own = mask[where[number]].repeat_interleave(site.unit)
        module = model.get_submodule(site.consumer)
        handles.append(module.register_forward_pre_hook(lambda m, args, own=own: (args[0] * own,)))
    for path in anatomy.writers:
        module = model.get_submodule(path)
        handles.append(module.register_forward_hook(lambda m, args, out: out * mask[where[-1]]))
    loss = summed_loss(model, batch)
    for handle in handles:
        handle.remove()
    return loss


def test_a_split_changes_no_fisher_score() -> None:
    model = tiny.model()
    whole, split = (Fisher(anatomy_of(model.config), 4, CPU) for _ in range(2))
    for fisher, micros in (
        (whole, [(0, collate(tiny.rows(), 0))]),
        (split, [(0, collate(tiny.rows()[:2], 0)), (2, collate(tiny.rows()[2:], 0))]),
    ):
        fisher.install(model)
        observed(fisher, model, micros)
        fisher.remove()
    assert np.allclose(whole.scores(), split.scores(), rtol=1e-4)
    assert all(torch.allclose(whole._grams[n], split._grams[n], rtol=1e-4, atol=1e-5) for n in whole._grams)


def test_a_decoder_has_tokens_of_its_own() -> None:
    model = tiny.small("t5")
    fisher = Fisher(anatomy_of(model.config, tiny.TASKS["t5"]), 2, CPU)
    fisher.install(model)
    read, write = torch.tensor([[1] * 9, [1] * 6 + [0] * 3]), torch.tensor([[1] * 4, [1] * 3 + [0]])
    ids = [torch.randint(4, 60, mask.shape, generator=torch.Generator().manual_seed(5)) for mask in (read, write)]

    def grams() -> dict[int, torch.Tensor]:
        fisher._grams.clear()
        fisher.begin(read, torch.float32, 0, write)
        model(input_ids=ids[0], attention_mask=read, decoder_input_ids=ids[1]).logits[write > 0].sum().backward()
        fisher.end()
        return dict(fisher._grams)

    first = grams()
    assert len(first) == len(fisher.anatomy.sites)
    # padding of either side counts nowhere
    ids[0][1, 6:], ids[1][1, 3:] = 7, 9
    assert all(torch.allclose(first[site], again, rtol=1e-4, atol=1e-5) for site, again in grams().items())
    fisher.remove()


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e30])
def test_tokens_that_overflow_are_not_kept(value: float) -> None:
    anatomy = anatomy_of(tiny.model().config)
    fisher = Fisher(anatomy, 4, CPU)
    width = anatomy.sites[0].unit * anatomy.sizes.counts[0]
    x = torch.randn(1, 5, width, generator=torch.Generator().manual_seed(1))
    fisher._add_gram(0, x, torch.tensor([[1, 0, 1, 1, 1]]))
    x[0, 1, 3] = value
    fisher._add_gram(0, x, torch.tensor([[0, 1, 0, 0, 0]]))
    counted = x[0, [0, 2, 3, 4]]
    assert torch.allclose(fisher._grams[0], counted.T @ counted, rtol=1e-5, atol=1e-5)


def test_rearranging_keeps_the_count_and_lowers_the_cost() -> None:
    gradients = np.random.default_rng(0).normal(size=(6, 20))
    gradients[:, 5] = -gradients[:, 4]  # together they cost nothing, alone much
    diagonal = np.square(gradients).sum(0)
    keep = np.ones(20, dtype=bool)
    keep[np.argsort(diagonal)[:4]] = False
    better = rearranged(gradients, keep)

    def cost(kept: np.ndarray) -> float:
        return float(np.square(gradients[:, ~kept].sum(1)).sum())

    assert better.sum() == keep.sum() and cost(better) < cost(keep)


def test_tuned_masks_solve_the_least_squares() -> None:
    generator = np.random.default_rng(1)
    contributions = generator.normal(size=(200, 10)) + generator.normal(size=(200, 1))
    keep = np.arange(10) < 6
    values = tuned_masks(contributions.T @ contributions, keep)
    exact, *_ = np.linalg.lstsq(contributions[:, keep], contributions.sum(1), rcond=None)
    assert np.allclose(values[keep], exact, atol=0.05) and (values[~keep] == 1).all()
    residual = contributions.sum(1) - contributions[:, keep] @ values[keep]
    assert np.square(residual).sum() < 0.6 * np.square(contributions[:, ~keep].sum(1)).sum()
