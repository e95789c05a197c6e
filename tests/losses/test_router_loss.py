"""The auxiliary loss of routers: that of transformers, by share of the global batch, only where it is asked for."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.data.batching import Batch
from apt_ds.losses.router_loss import RouterLoss, layer_loss
from apt_ds.losses.training_loss import TrainingLoss
from apt_ds.pruning.masks import Masks
from tests.support import tiny, tiny_experts


def test_a_layer_has_the_loss_of_transformers() -> None:
    logits, valid = torch.randn(12, 5), torch.ones(2, 6)
    valid[1, 3:] = 0
    chosen = logits.topk(2, dim=-1).indices
    expected = load_balancing_loss_func((logits,), 5, 2, valid)
    assert torch.allclose(layer_loss(logits, chosen, valid.view(-1, 1)), expected)


def batch() -> Batch:
    """Two rows, all tokens with a label."""
    ids = tiny.ids(2)
    return Batch(ids, torch.ones_like(ids), labels=ids.clone())


@pytest.mark.parametrize("asked", [False, True])
def test_training_adds_the_loss_where_the_configuration_asks_for_it(asked: bool) -> None:
    model, anatomy = tiny_experts.dressed("qwen3_moe", output_router_logits=asked, router_aux_loss_coef=0.5)
    masks = Masks(anatomy)
    loss = TrainingLoss(RunConfig(), LANGUAGE_MODEL, anatomy, 0, torch.device("cpu"))
    loss.install_hooks(model)
    loss.loss_denominator, loss.tokens_per_stack = 20, [44]
    total, task = loss.micro_batch_loss(model, batch(), masks)
    added = total - task / 20
    if not asked:
        assert not added
        return
    routers = RouterLoss(anatomy)
    routers.install(model)
    with routers.recording() as routes:
        model(tiny.ids(2))
    assert len(routes) == 2 and routes[0][0].shape == (22, 5)
    # half of the global batch
    mean = sum(layer_loss(logits, experts, torch.ones(22, 1)) for logits, experts in routes) / 2
    assert torch.allclose(added, 0.5 * mean / 2, atol=1e-5)
    total.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)
    loss.remove_hooks()
    with loss.routers.recording() as nothing:
        model(tiny.ids(2))
    assert not nothing


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model, anatomy = tiny_experts.dressed("olmoe", output_router_logits=True, router_aux_loss_coef=50.0)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = TrainingLoss(RunConfig(), LANGUAGE_MODEL, anatomy, 0, torch.device("cpu"))
        loss.install_hooks(model.train())
        loss.loss_denominator, loss.tokens_per_stack = 20, [22]
        loss.micro_batch_loss(model, batch(), Masks(anatomy))[0].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "lora_A" in name})
    for name, gradient in gradients[0].items():
        assert gradient.any() and torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


def test_a_masked_expert_adds_nothing() -> None:
    logits = torch.randn(6, 4)
    logits[:, 1] = -torch.inf
    chosen, valid = logits.topk(2, dim=-1).indices, torch.ones(6, 1)
    smaller = logits[:, [0, 2, 3]]
    masked = layer_loss(logits, chosen, valid)
    assert torch.allclose(masked / 4, layer_loss(smaller, smaller.topk(2, dim=-1).indices, valid) / 3)
