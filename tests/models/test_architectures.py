"""The laws of the house for BERT, RoBERTa and T5: prices, masked equals cut, growth, scores (sections 1 to 3, 8)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import HIDDEN, Anatomy, block_slices, kept_sizes
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.salience import Salience
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.pruning.test_masks import random_keep
from tests.support import tiny

KINDS = tuple(tiny.SMALL)


def dressed(kind: str) -> tuple[PreTrainedModel, Anatomy]:
    """A small model with adapters that do something."""
    model = tiny.small(kind)
    anatomy = anatomy_of(model.config, tiny.TASKS[kind])
    architecture_of(model.config).prepare(model, anatomy)
    adapter.attach(model, anatomy, ("q", "v", "up"), rank=3, seed=1)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    return model, anatomy


def priced(model: PreTrainedModel, anatomy: Anatomy) -> int:
    """Counted parameters of the linear layers between the residual streams."""
    paths = {path for paths in anatomy.targets.values() for path in paths}
    return sum(model.get_submodule(path).weight.numel() for path in paths)


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_names_every_parameter_and_counts_it(kind: str) -> None:
    model = tiny.small(kind)
    anatomy = anatomy_of(model.config, tiny.TASKS[kind])
    named = {slot.path for slot in anatomy.slots}
    assert {n.rpartition(".")[0] for n, _ in model.named_parameters(remove_duplicate=False)} == named
    for path in (*anatomy.writers, *anatomy.readers, *anatomy.norms, *anatomy.stream_wide, *anatomy.layers):
        model.get_submodule(path)
    assert anatomy.num_parameters(anatomy.sizes) == priced(model, anatomy)
    prices = anatomy.params_per_block(anatomy.sizes)
    for _, span in block_slices(anatomy.sizes):
        keep = np.ones(anatomy.sizes.total(), dtype=bool)
        keep[span.start] = False
        assert (
            anatomy.num_parameters(anatomy.sizes) - anatomy.num_parameters(kept_sizes(anatomy.sizes, keep))
            == prices[span.start]
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_masked_equals_cut(kind: str, seed: int) -> None:
    model, anatomy = dressed(kind)
    keep = random_keep(anatomy, seed)
    masked, cut = copy.deepcopy(model), copy.deepcopy(model)
    masks = Masks(anatomy)
    masks.install(masked)
    assert torch.equal(tiny.answer(masked), tiny.answer(model))
    masks.set(keep.astype(float))
    smaller = apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    assert torch.allclose(tiny.answer(masked), tiny.answer(cut), atol=1e-5)
    assert not torch.allclose(tiny.answer(masked), tiny.answer(model), atol=1e-2)
    assert smaller.num_parameters(smaller.sizes) == priced(cut, smaller)
    again = random_keep(smaller, seed + 7)
    second = Masks(smaller)
    second.install(cut)
    second.set(again.astype(float))
    expected = tiny.answer(cut)
    second.remove()
    apply_plan(cut, smaller, Plan(keep=again), None, torch.Generator())
    assert torch.allclose(expected, tiny.answer(cut), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_soft_masks_reach_the_cut_without_a_jump(kind: str) -> None:
    model, anatomy = dressed(kind)
    masks = Masks(anatomy)
    masks.install(model)
    hidden = dict(block_slices(anatomy.sizes))[HIDDEN]
    outputs = []
    for value in (1e-4, 1e-6, 0.0):
        values = np.ones(anatomy.sizes.total())
        values[hidden.start : hidden.start + 8] = value
        masks.set(values)
        outputs.append(tiny.answer(model))
    assert (outputs[0] - outputs[2]).abs().max() < 5e-3
    assert (outputs[1] - outputs[2]).abs().max() < 5e-5


@pytest.mark.parametrize("kind", KINDS)
def test_growth_changes_nothing_a_model_says(kind: str) -> None:
    model, anatomy = dressed(kind)
    before = tiny.answer(model)
    paths = [path for path, _ in adapter.adapters(model)]
    apply_plan(model, anatomy, Plan(grow=dict.fromkeys(paths[::2], 6)), None, torch.Generator().manual_seed(0))
    assert set(adapter.ranks(model).values()) == {3, 6}
    assert torch.allclose(tiny.answer(model), before, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_tokens_that_count(kind: str) -> None:
    sums = []
    for rows in (slice(0, 3), slice(0, 2)):
        model, anatomy = dressed(kind)
        salience = Salience(anatomy, 0.85, "off", 1.0, torch.device("cpu"))
        salience.install(model.train())
        counted = torch.ones(3, 11)
        second = torch.ones(3, 7) if anatomy.decoder_prefix else None
        if rows.stop == 2:  # the same two rows count, once alone and once beside a third
            sums.append(masses(model, salience, counted[rows], second[rows] if second is not None else None, 2))
        else:
            counted[2] = 0
            if second is not None:
                second[2] = 0
            sums.append(masses(model, salience, counted, second, 3))
    assert sums[0].shape == sums[1].shape and (sums[0][0] > 0).any() and (sums[0][1] > 0).any()
    assert torch.allclose(sums[0], sums[1], rtol=1e-3, atol=1e-5)


def masses(
    model: PreTrainedModel, salience: Salience, mask: torch.Tensor, second: torch.Tensor | None, batch: int
) -> torch.Tensor:
    """Masses of one backward pass over the first two of `batch` rows."""
    tokens = tiny.ids(3)[:batch]
    inputs = {"input_ids": tokens}
    if salience.anatomy.decoder_prefix:
        inputs["decoder_input_ids"] = tiny.ids(3, 7, seed=1)[:batch]
    salience.begin(mask, torch.float32, 0, second)
    outputs = model(**inputs)
    logits = outputs.start_logits + outputs.end_logits if "start_logits" in outputs else outputs.logits
    logits[:2].square().sum().backward()
    salience.end()
    return salience.abs_sums.clone()


def test_position_bias_follows_heads_the_first_layer_has_lost() -> None:
    model, anatomy = dressed("t5")
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    keep[dict(block_slices(anatomy.sizes))[0].start : dict(block_slices(anatomy.sizes))[0].start + 3] = False
    apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    first, other = (model.get_submodule(f"encoder.block.{i}.layer.0.SelfAttention") for i in (0, 1))
    assert first.heads.tolist() == [3] and other.heads.tolist() == [0, 1, 2, 3]
    assert first.relative_attention_bias.weight.shape == (8, 4)
    before = tiny.answer(model)
    with torch.no_grad():
        first.relative_attention_bias.weight[:, 1] *= -3  # a head that only later layers have
    assert not torch.allclose(tiny.answer(model), before, atol=1e-3)


def test_a_cut_t5_generates_with_a_cache() -> None:
    model, anatomy = dressed("t5-gated")
    apply_plan(model, anatomy, Plan(keep=random_keep(anatomy, 3)), None, torch.Generator())
    tokens = tiny.ids(2, 6)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = model.generate(tokens, **options)
    assert torch.equal(cached, model.generate(tokens, use_cache=False, **options))


def test_a_task_an_architecture_has_no_table_for() -> None:
    with pytest.raises(
        UserError, match="'t5' is not supported as a classification; supported: bert, deberta-v2, distilbert, electra"
    ):
        anatomy_of(tiny.small("t5").config, tiny.TASKS["bert-classes"])
