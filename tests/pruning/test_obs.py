"""Scores that see the repair: the squares of output gradients, and costs by what layers read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.data.batching import collate
from apt_ds.losses.task_losses import summed_loss
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import ALL_KINDS, HIDDEN, Anatomy, block_slices
from apt_ds.pruning.activation_hooks import input_hook, output_hook
from apt_ds.pruning.kurtosis import effective_weight
from apt_ds.pruning.obs import Obs
from apt_ds.pruning.removal_costs import removal_costs
from tests.pruning.test_masks import with_adapters
from tests.pruning.test_repair import batches
from tests.pruning.test_salience import rows
from tests.support import tiny

CPU = torch.device("cpu")
Rows = list[dict[str, list[int]]]


def scored(split: list[Rows], kinds: tuple[str, ...] = ALL_KINDS) -> tuple[LlamaForCausalLM, Anatomy, Obs]:
    """A model and its scorer after a calibration step over micro-batches."""
    model, anatomy = with_adapters("gqa")
    obs = Obs(anatomy, CPU, kinds)
    obs.install(model)
    for part in split:
        batch = collate(part, 0)
        obs.begin(batch.attention_mask, torch.float32)
        summed_loss(model, batch).backward()
        obs.end()
    obs.update(gradient_scale=0.1)
    obs.remove()
    return model, anatomy, obs


def test_squares_are_those_of_the_gradients_at_the_outputs_of_consumers() -> None:
    model, anatomy, obs = scored([rows()])
    outputs: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> None:
        x.retain_grad()
        outputs.append(x)

    handles = [model.get_submodule(s.consumer).register_forward_hook(output_hook(keep)) for s in anatomy.sites]
    batch = collate(rows(), 0)
    summed_loss(model, batch).backward()
    for handle in handles:
        handle.remove()
    real = batch.attention_mask.bool()
    expected = torch.stack([(0.1 * x.grad[real]).square().sum(0) for x in outputs])
    assert torch.allclose(obs.squares, expected, rtol=1e-4) and expected.min() > 0


def test_no_split_into_micro_batches_changes_the_squares() -> None:
    whole, split = scored([rows()])[2], scored([rows()[:2], rows()[2:3], rows()[3:]])[2]
    assert torch.allclose(whole.squares, split.squares, rtol=1e-4)


def test_costs_are_those_of_the_dense_models_inputs() -> None:
    model, anatomy, obs = scored([rows()])
    given = batches(3)
    inputs: dict[str, list[torch.Tensor]] = {site.consumer: [] for site in anatomy.sites}
    model.eval()
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            input_hook(lambda x, seen=seen: seen.append(x.flatten(0, 1)))
        )
        for path, seen in inputs.items()
    ]
    with torch.no_grad():
        for batch in given:
            batch.run(model.model)
    for handle in handles:
        handle.remove()
    model.train()
    obs.score_layer_inputs(model, given)
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())
    spans = dict(block_slices(anatomy.sizes))
    for number, site in enumerate(anatomy.sites):
        x = torch.cat([x[batch.tokens.counted] for x, batch in zip(inputs[site.consumer], given, strict=True)])
        with effective_weight(model.get_submodule(site.consumer)) as weight:
            costs = removal_costs(weight, obs.squares[number], x.T @ x / len(x), site.unit)
        assert np.allclose(obs.scores()[spans[number]], costs / 2, rtol=1e-3)
    assert not obs.scores()[spans[HIDDEN]].any() and obs.scores()[: spans[HIDDEN].start].min() > 0


def test_scores_do_not_depend_on_the_number_of_tokens_that_layers_read() -> None:
    model, _, obs = scored([rows()])
    obs.score_layer_inputs(model, batches(3))
    once = obs.scores().copy()
    obs.score_layer_inputs(model, batches(3) * 2)
    assert np.allclose(obs.scores(), once, rtol=1e-3)


def test_only_blocks_that_may_be_removed_are_observed() -> None:
    model, anatomy, obs = scored([rows()], ("neurons",))
    obs.score_layer_inputs(model, batches(1))
    spans = dict(block_slices(anatomy.sizes))
    assert {s.kind for n, s in enumerate(anatomy.sites) if obs.scores()[spans[n]].any()} == {"neuron"}


def test_nothing_is_scored_without_a_finite_step_and_by_inputs_that_are_not_finite() -> None:
    model, _, obs = scored([])
    obs.score_layer_inputs(model, batches(1))
    assert not obs.scores().any()
    model, anatomy, obs = scored([rows()])
    with torch.no_grad():
        model.get_submodule(anatomy.layers[0]).input_layernorm.weight[0] = torch.inf
    with pytest.raises(UserError, match=r"--score obs: inputs of a layer are not finite .*o_proj"):
        obs.score_layer_inputs(model, batches(1))


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"pruning": "gradual"}, "--pruning gradual does not support --score obs. Give --score salience or random"),
        ({"prune_blocks": "neurons,hidden"}, "--score obs does not support --prune_blocks neurons,hidden"),
    ],
)
def test_what_has_no_such_costs_is_refused(flags: dict[str, str], problem: str) -> None:
    run = RunConfig(score="obs", sparsity=0.3, **flags)
    with pytest.raises(UserError, match=problem):
        run.check_options()


def test_a_decoder_counts_its_own_tokens() -> None:
    model = tiny.small("t5")
    obs = Obs(anatomy_of(model.config, tiny.TASKS["t5"]), CPU)
    obs.install(model)
    read, write = torch.tensor([[1] * 9, [1] * 6 + [0] * 3]), torch.tensor([[1] * 4, [1] * 3 + [0]])
    ids = [torch.randint(4, 60, mask.shape, generator=torch.Generator().manual_seed(5)) for mask in (read, write)]
    sums = []
    for _ in range(2):
        obs.begin(read, torch.float32, 0, write)
        model(input_ids=ids[0], attention_mask=read, decoder_input_ids=ids[1]).logits[write > 0].sum().backward()
        obs.end()
        sums.append(obs.abs_sums.clone())
        obs.abs_sums.zero_()
        # padding of either side counts nowhere
        ids[0][1, 6:], ids[1][1, 3:] = 7, 9
    assert sums[0].min() > 0 and torch.allclose(*sums, rtol=1e-4, atol=1e-7)
