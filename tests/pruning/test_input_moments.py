"""Mean and spread of what consumers read, whatever the split over micro-batches and steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apt_ds.data.batching import Batch, collate
from apt_ds.losses.task_losses import summed_loss
from apt_ds.models.architectures import anatomy_of
from apt_ds.pruning.flap import Flap
from apt_ds.pruning.input_moments import InputMoments, column_sums, token_sums
from apt_ds.pruning.wanda import WandaSp
from tests.support import tiny

CPU = torch.device("cpu")
KINDS = ("heads", "neurons")


def observe(scorer: InputMoments, model: torch.nn.Module, micros: list[Batch]) -> None:
    """One step."""
    for batch in micros:
        scorer.begin(batch.attention_mask, torch.float32)
        summed_loss(model, batch).backward()
        scorer.end()
    scorer.update(1.0)


def plain_inputs(model: torch.nn.Module, paths: list[str], examples: list[dict[str, list[int]]]) -> list[np.ndarray]:
    """What each module reads, token by token, one example at a time: float64 [tokens, channels]."""
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, own=seen[path]: own.append(args[0].detach()[0])
        )
        for path in paths
    ]
    for row in examples:
        model(torch.tensor([row["input_ids"]]))
    for handle in handles:
        handle.remove()
    return [torch.cat(seen[path]).double().numpy() for path in paths]


@pytest.mark.parametrize("scorer_class", [Flap, WandaSp])
def test_moments_are_those_of_all_tokens_however_they_are_split(scorer_class: type[InputMoments]) -> None:
    model = tiny.model()
    anatomy = anatomy_of(model.config)
    splits = (
        [[collate(tiny.rows(6), 0)]],
        [[collate(tiny.rows(6)[:1], 0), collate(tiny.rows(6)[1:4], 0)], [collate(tiny.rows(6)[4:], 0)]],
    )
    densities = []
    for steps in splits:
        scorer = scorer_class(anatomy, CPU, KINDS)
        scorer.install(model)
        for micros in steps:
            observe(scorer, model, micros)
        scorer.remove()
        inputs = plain_inputs(model, [site.consumer for site in anatomy.sites], tiny.rows(6))
        for number, x in enumerate(inputs):
            place = scorer.places[number]
            assert scorer.counts[number] == len(x) == sum(len(row["input_ids"]) for row in tiny.rows(6))
            assert np.allclose(scorer.means[place], x.mean(0), atol=1e-5)
            assert np.allclose(scorer.squares[place] / len(x), x.var(0), rtol=1e-3, atol=1e-6)
        assert not scorer.counts[len(anatomy.sites) :].any()
        scorer.conclude(model)
        densities.append(scorer.densities)
        assert (scorer.scores() > 0)[: -anatomy.sizes.hidden].all() and not scorer.scores()[
            -anatomy.sizes.hidden :
        ].any()
    assert np.allclose(*densities, rtol=1e-3)


def test_a_step_that_is_not_finite_leaves_nothing() -> None:
    model = tiny.model()
    scorer = Flap(anatomy_of(model.config), CPU, KINDS)
    scorer.install(model)
    batch = collate(tiny.rows(6), 0)
    scorer.begin(batch.attention_mask, torch.float32)
    summed_loss(model, batch).backward()
    assert scorer.abs_sums.any()
    scorer.discard()
    scorer.update(1.0)
    scorer.remove()
    scorer.conclude(model)
    assert not scorer.counts.any() and not scorer.scores().any()


def test_kinds_that_may_not_go_are_not_observed() -> None:
    model = tiny.model()
    anatomy = anatomy_of(model.config)
    scorer = Flap(anatomy, CPU, ("neurons", "hidden"))
    assert [scorer.observes(number) for number in (0, 1, 2, 3, -1)] == [False, True, False, True, False]


def test_sums_are_taken_in_chunks_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    x, valid = torch.randn(2, 5, 6).bfloat16(), torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1, 1, 0]])
    counted = x.flatten(0, 1)[valid[0] > 0].float()
    weight = torch.randn(7, 6)
    for elements in (1 << 20, 12):
        monkeypatch.setattr("apt_ds.pruning.input_moments.CHUNK_ELEMENTS", elements)
        assert torch.allclose(token_sums(valid, x), torch.stack([counted.sum(0), counted.square().sum(0)]), atol=1e-5)
        assert np.allclose(column_sums(weight, 2), weight.square().sum(0)) and np.allclose(
            column_sums(weight, 1), weight.abs().sum(0)
        )
