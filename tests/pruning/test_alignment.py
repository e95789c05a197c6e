"""The step of kept sizes that a run does not state, and sizes that divide between GPUs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import Anatomy, Sizes, block_slices, kept_sizes
from apt_ds.models.export.configs import writable_sizes
from apt_ds.models.writable_sizes import EVERY_SIZE
from apt_ds.pruning.alignment import MISS, QUANTIZED, automatic_align
from apt_ds.pruning.budget_search import cuttable, search
from apt_ds.pruning.limits import Rules, default_align
from apt_ds.pruning.rules import rules_of
from tests.support import tiny
from tests.support.published import SHAPES, published_config

STRUCTURES = ("uniform", "adaptive")
BLOCKS = ("neurons", "heads,neurons", "heads,neurons,hidden")


def drawn(anatomy: Anatomy, seed: int = 1) -> np.ndarray:
    """Random densities."""
    return np.random.default_rng(seed).random(anatomy.sizes.total()) * anatomy.params_per_block(anatomy.sizes)


def smollm2() -> Anatomy:
    """SmolLM2 135M: 1 % of it is 16 neurons of every layer."""
    config = tiny.config(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=4
    )
    return anatomy_of(config)


def test_a_small_model_keeps_multiples_of_32_where_the_budget_permits() -> None:
    table = smollm2()
    assert default_align(table) == 16
    for structure, sparsity in itertools.product(STRUCTURES, (0.2, 0.3, 0.5)):
        rules = rules_of(RunConfig(structure=structure, sparsity=sparsity), table)
        assert rules.align_neurons == rules.align_hidden == 32
        budget = (1 - sparsity) * table.num_parameters(table.sizes)
        kept = kept_sizes(table.sizes, search(drawn(table), table, rules, budget))
        assert not any(n % 32 for n in kept.counts[1::2])
        assert (1 - MISS) * budget <= table.num_parameters(kept) <= budget


def test_a_larger_step_does_not_force_heads_to_go() -> None:
    """The heads that matter stay: 3 and 896 neurons use 98.2 % of the budget, 2 and 1088 use 99.7 %."""
    config = tiny.config(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64
    )
    table = anatomy_of(config)
    scores = drawn(table)
    for site, span in block_slices(table.sizes):
        if table.kind(site) == "head":
            scores[span] *= 10
    kept = kept_sizes(
        table.sizes, search(scores, table, rules_of(RunConfig(), table), 0.7 * table.num_parameters(table.sizes))
    )
    assert kept.counts == (3, 896) * 2
    strict = search(scores, table, Rules(("heads", "neurons"), "uniform", 32), 0.7 * table.num_parameters(table.sizes))
    assert kept_sizes(table.sizes, strict).counts == (2, 1088) * 2


def test_a_budget_that_32_would_miss_gets_a_smaller_step() -> None:
    """One unit of 32 neurons is a fiftieth of all, so that some budgets are missed by more than `MISS`."""
    table = smollm2()
    full, rules = table.num_parameters(table.sizes), Rules(("neurons",), "uniform")
    steps = {automatic_align(rules, table, (1 - sparsity / 1000) * full) for sparsity in range(550, 650, 5)}
    assert steps == {16, 32}


def test_tiny_layers_keep_the_step_of_their_size() -> None:
    for config in (tiny.config("mha"), tiny.small("bert-classes").config):
        table = anatomy_of(config) if config.model_type == "llama" else anatomy_of(config, "classification")
        assert rules_of(RunConfig(), table).align_neurons == default_align(table) < 32


def test_4_bits_take_64_and_a_stated_step_is_kept() -> None:
    table = smollm2()
    assert rules_of(RunConfig(base_bits=4), table).align_neurons == 64
    assert rules_of(RunConfig(align=16), table).align_neurons == 16
    assert rules_of(RunConfig(recipe="paper", align=1), table).align_neurons == 1
    for method, align in (("nf4", 64), ("fp8", 64), ("w4a16", 32)):
        assert rules_of(RunConfig(export_quantization=method), table).align_neurons == align
    rules = Rules(("heads", "neurons"), "uniform")
    assert automatic_align(rules, table, 0.7 * table.num_parameters(table.sizes), QUANTIZED) == 64


@pytest.mark.parametrize("gpus", [2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_what_the_search_keeps_divides_between_gpus(name: str, gpus: int) -> None:
    """The heads of every layer, its key/value heads or the GPUs between them, and its neurons, as vLLM asserts."""
    config, checked = published_config(name), 0
    anatomy, queries = anatomy_of(config), config.num_attention_heads // config.num_key_value_heads
    for blocks, structure, sparsity in itertools.product(BLOCKS, STRUCTURES, (0.1, 0.5)):
        run = RunConfig(prune_blocks=blocks, structure=structure, sparsity=sparsity, tensor_parallel=gpus)
        try:
            rules = rules_of(run, anatomy, writable_sizes(config))
            keep = search(drawn(anatomy), anatomy, rules, (1 - sparsity) * anatomy.num_parameters(anatomy.sizes))
        except UserError as error:
            assert "\n" not in str(error)
            assert str(error).startswith("--tensor_parallel") or "be met" in str(error) or "be written" in str(error)
            continue
        check_division(kept_sizes(anatomy.sizes, keep), queries, gpus)
        checked += 1
    assert checked >= 8 or (gpus == 4 and config.num_attention_heads % 4) or "phi" in name


def check_division(sizes: Sizes, queries: int, gpus: int) -> None:
    for groups, neurons in zip(sizes.counts[0::2], sizes.counts[1::2], strict=True):
        assert groups * queries % gpus == 0 and neurons % gpus == 0
        assert groups % gpus == 0 if groups >= gpus else gpus % groups == 0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_masks_fit_sizes_that_divide(structure: str) -> None:
    """What gradual pruning cuts between leaves whole groups, with room for every remaining block."""
    config = published_config("mistral-7b-v0.3")
    anatomy = anatomy_of(config)
    rules = rules_of(RunConfig(structure=structure, tensor_parallel=4), anatomy, EVERY_SIZE)
    removable = np.random.default_rng(0).random(anatomy.sizes.total()) < 0.55
    for _, span in list(block_slices(anatomy.sizes))[-1:]:
        removable[span] = False
    keep = cuttable(removable, drawn(anatomy), anatomy, rules)
    assert (keep | removable).all() and not keep.all()
    check_division(kept_sizes(anatomy.sizes, keep), 4, 4)


def test_heads_that_do_not_divide_are_reduced_until_they_do() -> None:
    """A model with 15 query heads cannot be split. One with 12 can."""
    config = tiny.config(
        hidden_size=960, intermediate_size=2560, num_attention_heads=15, num_key_value_heads=5, head_dim=64
    )
    table = anatomy_of(config)
    for structure in STRUCTURES:
        rules = rules_of(RunConfig(structure=structure, tensor_parallel=2, sparsity=0.01), table)
        keep = search(drawn(table), table, rules, 0.99 * table.num_parameters(table.sizes))
        assert set(kept_sizes(table.sizes, keep).counts[0::2]) <= {2, 4}
        # gradual pruning begins with the whole model in its budget
        keep = search(drawn(table), table, rules, 1.0 * table.num_parameters(table.sizes))
        assert set(kept_sizes(table.sizes, keep).counts[0::2]) == {4}
    for flags in ({"pruning": "none"}, {"prune_blocks": "neurons"}):
        with pytest.raises(UserError, match="the 5 key/value heads, with 3 query heads each, of a layer do not divide"):
            rules_of(RunConfig(tensor_parallel=2, **flags), table)
