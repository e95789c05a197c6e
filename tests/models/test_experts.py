"""The mixture of `models/experts.py` computes what transformers computes, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from apt_ds.models import experts
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.experts import grouped_outer, grouped_product, route
from tests.support import tiny, tiny_experts

FAMILIES = tuple(tiny_experts.FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_transformers(family: str) -> None:
    stock = tiny_experts.model(family)
    ours = copy.deepcopy(stock)
    architecture_of(ours.config).prepare(ours, anatomy_of(ours.config))
    stock.set_experts_implementation("eager")
    for model in (stock, ours):
        tiny_experts.answer(model).square().sum().backward()
    assert torch.allclose(tiny_experts.answer(stock), tiny_experts.answer(ours), atol=1e-5)
    gradients = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        scale = parameter.grad.abs().max()
        assert torch.allclose(parameter.grad, gradients[name].grad, atol=1e-4 * scale), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalized", [True, False])
def test_routes_are_those_of_the_family(family: str, normalized: bool) -> None:
    changes = {} if family == "mixtral" else {"norm_topk_prob": normalized}
    model = tiny_experts.model(family, **changes)
    anatomy = anatomy_of(model.config)
    architecture_of(model.config).prepare(model, anatomy)
    router = model.get_submodule(anatomy.experts[0].router)
    logits, weights, chosen = router(torch.randn(7, 32))
    routes = route(logits, router.top_k, router.norm_topk_prob, weights.dtype)
    assert torch.equal(routes[1], chosen) and torch.allclose(routes[0], weights)
    masked, reached = route(logits + torch.tensor([0, 0, -torch.inf, 0, 0]), 2, True, torch.float32)
    assert not (reached == 2).any() and torch.allclose(masked.sum(1), torch.ones(7))


def test_products_are_those_of_each_expert_alone() -> None:
    x, weight = torch.randn(9, 5, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)
    ends = torch.tensor([2, 2, 7, 9], dtype=torch.int32)
    expected = torch.cat([x[:2] @ weight[0], x[2:7] @ weight[2], x[7:] @ weight[3]])
    assert torch.allclose(grouped_product(x, weight, ends), expected)
    outer = grouped_outer(expected, x, ends)
    assert torch.allclose(outer[2], expected[2:7].T @ x[2:7]) and not outer[1].any()
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(tensor) for tensor in (x, weight, ends)]
        assert grouped_product(*tensors).shape == (9, 3)
        assert grouped_outer(tensors[0], tensors[0], tensors[2]).shape == (4, 5, 5)


def test_a_mixture_keeps_no_values_of_a_frozen_weight_for_backward() -> None:
    model, anatomy = tiny_experts.dressed("mixtral")
    module = model.get_submodule(anatomy.experts[0].path)
    kept: list[torch.Size] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    x = torch.randn(6, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x, torch.randint(0, 5, (6, 2)), torch.rand(6, 2)).sum().backward()
    assert kept and all(len(shape) < 3 for shape in kept)


def test_a_model_returns_no_router_logits() -> None:
    model, _ = tiny_experts.dressed("olmoe", output_router_logits=True)
    assert model(tiny.ids()).router_logits is None
    assert model.config._experts_implementation == experts.KERNEL


def test_a_token_is_multiplied_with_the_experts_that_it_reaches() -> None:
    model = tiny_experts.model("qwen3_moe")
    attention = sum(p.numel() for name, p in model.named_parameters() if "self_attn" in name and "proj" in name)
    expected = attention + 2 * 2 * 3 * 32 * tiny_experts.NEURONS + model.lm_head.weight.numel()
    assert experts.weights_per_token(model) == expected
    assert experts.weights_per_token(tiny.model()) == sum(
        p.numel() for name, p in tiny.model().named_parameters() if name.endswith(("_proj.weight", "lm_head.weight"))
    )
