"""A masked model equals the cut one (section 8)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.support import tiny, tiny_families


def random_keep(anatomy: Anatomy, seed: int) -> np.ndarray:
    """Some of everything goes, never all of a site."""
    draw = np.random.default_rng(seed)
    keep = draw.random(anatomy.sizes.total()) < 0.6
    for _, span in block_slices(anatomy.sizes):
        keep[span.start] = True
        keep[span.stop - 1] = False
    return keep


def with_adapters(kind: str) -> tuple[torch.nn.Module, Anatomy]:
    model = tiny.model(kind)
    anatomy = anatomy_of(model.config)
    adapter.attach(model, anatomy, ("q", "k", "v", "o", "gate", "up", "down"), rank=3, seed=1)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    return model, anatomy


@pytest.mark.parametrize("kind", ["mha", "gqa"])
@pytest.mark.parametrize("seed", [0, 1])
def test_masked_equals_cut(kind: str, seed: int) -> None:
    model, anatomy = with_adapters(kind)
    keep = random_keep(anatomy, seed)
    masked, cut = copy.deepcopy(model), copy.deepcopy(model)
    masks = Masks(anatomy)
    masks.install(masked)
    masks.set(keep.astype(float))
    smaller = apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    a, b = masked(tiny.ids()).logits, cut(tiny.ids()).logits
    assert torch.allclose(a, b, atol=1e-5)
    assert not torch.allclose(a, model(tiny.ids()).logits, atol=1e-2)
    counted = sum(p.numel() for n, p in cut.named_parameters() if "_proj.weight" in n)
    assert smaller.num_parameters(smaller.sizes) == counted


@pytest.mark.parametrize("family", ["gqa", "olmo2", "phi3", "t5-gated", "bert-classes"])
def test_masked_with_factors_equals_cut_with_factors(family: str) -> None:
    """Factors multiply what consumers read, and change no statistics of a norm."""
    if family == "gqa":
        model, anatomy = with_adapters(family)
    else:
        model = tiny.small(family) if family in tiny.SMALL else tiny_families.model(family)
        anatomy = anatomy_of(model.config, tiny.TASKS.get(family, LANGUAGE_MODEL))
        architecture_of(model.config).prepare(model, anatomy)
    keep = random_keep(anatomy, 0)
    # a site that loses nothing has no factors
    first = dict(block_slices(anatomy.sizes))[0]
    keep[first] = True
    scale = np.random.default_rng(1).uniform(0.5, 1.5, len(keep)).astype(np.float32).astype(np.float64)
    cut, masks = copy.deepcopy(model), Masks(anatomy)
    masks.install(model)
    masks.set(keep.astype(float))
    apply_plan(cut, anatomy, Plan(keep=keep, scale=scale), None, torch.Generator())
    factors = torch.from_numpy(scale).float().requires_grad_()
    with masks.scaled(factors):
        masked = tiny.answer(model)
    assert torch.allclose(masked, tiny.answer(cut), atol=3e-5)
    assert not torch.allclose(masked, tiny.answer(model), atol=1e-2)
    masked.square().sum().backward()
    spans = [span for site, span in block_slices(anatomy.sizes) if site not in (0, HIDDEN)]
    assert all(factors.grad[span][keep[span]].all() and not factors.grad[span][~keep[span]].any() for span in spans)
    assert not factors.grad[first].any()


def test_norms_follow_the_kept_fraction_without_a_jump() -> None:
    model, anatomy = with_adapters("gqa")
    masks = Masks(anatomy)
    masks.install(model)
    hidden = dict(block_slices(anatomy.sizes))[HIDDEN]
    outputs = []
    for value in (1e-4, 1e-6, 0.0):
        values = np.ones(anatomy.sizes.total())
        values[hidden.start : hidden.start + 8] = value
        masks.set(values)
        outputs.append(model(tiny.ids()).logits)
    assert (outputs[0] - outputs[2]).abs().max() < 2e-3
    assert (outputs[1] - outputs[2]).abs().max() < 2e-5


@pytest.mark.parametrize("kind", ["head", "hidden"])
def test_norms_over_heads_and_after_sublayers_follow_soft_masks_without_a_jump(kind: str) -> None:
    """OLMo 2 normalises queries and keys over all heads, and the output of each sublayer."""
    model = tiny_families.model("olmo2")
    anatomy = anatomy_of(model.config)
    masks = Masks(anatomy)
    masks.install(model)
    outputs = []
    for value in (1e-4, 1e-6, 0.0):
        values = np.ones(anatomy.sizes.total())
        for site, span in block_slices(anatomy.sizes):
            if anatomy.kind(site) == kind:
                values[span.start : span.start + (span.stop - span.start) // 4] = value
        masks.set(values)
        outputs.append(model(tiny.ids()).logits)
    assert (outputs[0] - outputs[2]).abs().max() < 5e-3
    assert (outputs[1] - outputs[2]).abs().max() < 5e-5
    with masks.disabled():
        assert torch.equal(model(tiny.ids()).logits, tiny_families.model("olmo2")(tiny.ids()).logits)


def test_a_sublayer_without_heads_computes_finite_numbers() -> None:
    """The norm of its queries has no statistics. Nothing reads it."""
    model = tiny_families.model("olmo2")
    anatomy = anatomy_of(model.config)
    masks, values = Masks(anatomy), np.ones(anatomy.sizes.total())
    values[dict(block_slices(anatomy.sizes))[0]] = 0
    masks.install(model)
    masks.set(values)
    assert model(tiny.ids()).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["gqa", "bert-classes", "gemma2", "olmo2"])
def test_masks_that_learn_have_the_gradient_of_the_loss(kind: str) -> None:
    """Against differences of the loss, summed over two micro-batches, for blocks of every site and for norms."""
    model, anatomy = family(kind)
    masks = Masks(anatomy)
    masks.install(model)
    draw = np.random.default_rng(2)
    values = draw.uniform(0.3, 0.9, anatomy.sizes.total())
    values[:1] = 1.0

    def loss() -> torch.Tensor:
        return tiny.answer(model).double().square().mean()

    masks.learn(values)
    for _ in range(2):
        loss().backward()
    gradients = masks.gradients(torch.device("cpu")).double() / 2
    assert gradients.shape == values.shape
    scale = float(gradients.abs().max())
    for _, span in block_slices(anatomy.sizes):
        for block in (span.start + 1, span.stop - 1):
            ends = []
            for sign in (1, -1):
                moved = values.copy()
                moved[block] += sign * 0.01
                masks.set(moved)
                with torch.no_grad():
                    ends.append(loss())
            assert float(gradients[block]) == pytest.approx(float(ends[0] - ends[1]) / 0.02, rel=0.03, abs=2e-3 * scale)
    # they were set again, so that nothing is collected any more
    assert not masks.gradients(torch.device("cpu")).any()


def family(kind: str) -> tuple[torch.nn.Module, Anatomy]:
    if kind in tiny.TASKS:
        model = tiny.model(kind) if kind in tiny.KINDS else tiny.small(kind)
        return model, anatomy_of(model.config, tiny.TASKS[kind])
    model = tiny_families.model(kind)
    return model, anatomy_of(model.config)


def test_removing_hooks_restores_the_model() -> None:
    model, anatomy = with_adapters("gqa")
    before = model(tiny.ids()).logits
    masks = Masks(anatomy)
    masks.install(model)
    assert torch.equal(model(tiny.ids()).logits, before)
    masks.set(np.full(anatomy.sizes.total(), 0.5))
    assert not torch.allclose(model(tiny.ids()).logits, before)
    masks.remove()
    assert torch.equal(model(tiny.ids()).logits, before)


def test_a_masked_model_generates() -> None:
    model, anatomy = with_adapters("gqa")
    keep = random_keep(anatomy, 3)
    cut = copy.deepcopy(model)
    apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    masks = Masks(anatomy)
    masks.install(model)
    masks.set(keep.astype(float))
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(tiny.ids(1, 5), **options), cut.generate(tiny.ids(1, 5), **options))
