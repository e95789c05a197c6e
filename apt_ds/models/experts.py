"""A layer's mixture of experts, computed so that hooks see the neurons of every expert.

Transformers keeps the experts of a layer in two 3-D weights and lets models choose how to compute with them.
`set_up` chooses `forward` below. It computes what the stock kernels compute, and passes all neurons through a module
without weights, `ExpertNeurons`. Shapes: T tokens, E experts, k of them for a token, S = T k slots, d_m hidden
dimensions, f neurons of an expert.

A product keeps the parameter for the backward pass instead of its values, so that ZeRO-3 may shard it between the two.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from apt_ds.models.blocks import DOWN, GATE_UP, Anatomy
from apt_ds.runtime import zero

KERNEL = "apt_by_expert"
NEURONS = "neurons"  # the attribute of a mixture that holds its `ExpertNeurons`
ALIGNED = 8  # neurons and hidden dimensions are multiples of it: transformers multiplies rows of whole 16 bytes


class ExpertNeurons(nn.Module):
    """Passes the neurons of a layer's experts on. Masks and scores hook it."""

    def forward(self, neurons: Tensor, experts: Tensor, tokens: Tensor) -> Tensor:
        """The neurons.

        Args:
            neurons: [S, f], sorted by expert.
            experts: int64 [S], the expert of each slot.
            tokens: int64 [S], the token of each slot.
        """
        return neurons


def set_up(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Make a model's mixtures compute with `forward`. The model returns no router logits."""
    for mixture in anatomy.experts:
        model.get_submodule(mixture.path).add_module(NEURONS, ExpertNeurons())
    model.set_experts_implementation(KERNEL)
    model.config.output_router_logits = False


def forward(self: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The output of a mixture.

    Args:
        self: the module with the experts' weights.
        hidden: [T, d_m].
        top_k_index: int64 [T, k], the experts of each token.
        top_k_weights: [T, k], their weights.

    Returns:
        [T, d_m] in the dtype of `hidden`.
    """
    tokens, chosen = top_k_index.shape
    experts, order = torch.sort(top_k_index.flatten(), stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    numbers = torch.arange(self.gate_up_proj.shape[0], device=experts.device)
    ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)
    x = _Spread.apply(hidden, order, inverse, chosen)
    gate, up = _Product.apply(x, self.gate_up_proj, ends).chunk(2, dim=-1)
    neurons = self.neurons(self.act_fn(gate) * up, experts, order // chosen)
    output = _Product.apply(neurons, self.down_proj, ends)
    output = _Spread.apply(output, inverse, order, 1) * top_k_weights.reshape(-1, 1)
    return output.view(tokens, chosen, -1).sum(dim=1).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(KERNEL, forward)


def route(logits: Tensor, top_k: int, normalized: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(weights, experts) of each token, as the routers of transformers choose them.

    Args:
        logits: [T, E]. An expert with -inf gets no token.
        top_k: experts of a token.
        normalized: the weights of a token add up to 1.
        dtype: dtype of the weights.

    Returns:
        [T, top_k] in `dtype`, and int64 [T, top_k].
    """
    weights, experts = torch.topk(logits.softmax(dim=-1, dtype=torch.float32), top_k, dim=-1)
    if normalized:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(dtype), experts


def state_sizes(model: nn.Module, anatomy: Anatomy) -> None:
    """Make the sizes that routers and mixtures state those of their weights."""
    for mixture in anatomy.experts:
        module, router = model.get_submodule(mixture.path), model.get_submodule(mixture.router)
        count, width, inner = zero.full_shape(module.get_parameter(DOWN))
        for part in (module, router):
            vars(part).update(num_experts=count, hidden_dim=width)
        vars(module).update(intermediate_dim=inner)


def weights_per_token(model: nn.Module) -> int:
    """Weights of linear layers and experts that a token is multiplied with, in a model of any class.

    Of E experts a token reaches `num_experts_per_tok`. Routers and embeddings do not count.
    """
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            total += module.weight.numel()
        down = module._parameters.get(DOWN)
        if down is not None and down.dim() == 3:
            chosen = vars(module)["config"].num_experts_per_tok
            total += chosen * (down[0].numel() + module.get_parameter(GATE_UP)[0].numel())
    return total


class _Spread(torch.autograd.Function):
    """Row `order[s] // copies` of x for every slot s. The backward sum has a fixed order, unlike that of indexing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return x.index_select(0, order // copies)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = gradient.index_select(0, inverse)
        return rows.view(-1, ctx.copies, rows.shape[-1]).sum(dim=1), None, None, None


class _Product(torch.autograd.Function):
    """The product of each row with its expert's matrix, transposed: [S, in] and [E, out, in] -> [S, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, ends: Tensor) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(ends, *([x] if ctx.needs_input_grad[1] else []))
        return grouped_product(x, weight.transpose(1, 2), ends)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        ends, *rows = ctx.saved_tensors
        own = grouped_outer(gradient, rows[0], ends) if rows else None
        return grouped_product(gradient, ctx.weight, ends), own, None


@torch.library.custom_op("apt_ds::grouped_product", mutates_args=())
def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The product of each row with its expert's matrix: [S, in] and [E, in, out] -> [S, out]. Row ends[e] is past e."""
    whole = all(size % ALIGNED == 0 for size in weight.shape[1:])
    if x.is_cuda and x.dtype == torch.bfloat16 and whole and hasattr(F, "grouped_mm"):
        return F.grouped_mm(x.contiguous(), weight, offs=ends)
    output = x.new_empty(len(x), weight.shape[2])
    for expert, rows in enumerate(_rows(ends)):
        torch.mm(x[rows], weight[expert], out=output[rows])
    return output


@grouped_product.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


@torch.library.custom_op("apt_ds::grouped_outer", mutates_args=())
def grouped_outer(gradient: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """The gradient of the matrices of `grouped_product`, transposed: [S, out] and [S, in] -> [E, out, in]."""
    products = [gradient[rows].t() @ x[rows] for rows in _rows(ends)]
    return torch.stack(products)


@grouped_outer.register_fake
def _(gradient: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], gradient.shape[1], x.shape[1])


def _rows(ends: Tensor) -> list[slice]:
    """The rows of every expert. Reads `ends` on the host."""
    last = ends.tolist()
    return [slice(start, end) for start, end in zip([0, *last], last, strict=False)]
