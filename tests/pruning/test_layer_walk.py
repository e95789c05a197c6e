"""A walk through the layers gives what a whole forward pass gives, in every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import Anatomy
from apt_ds.models.unwrap import pretrained_model
from apt_ds.pruning.layer_walk import LayerWalk, WalkBatch, WalkTokens
from apt_ds.pruning.masks import Masks
from tests.pruning.test_masks import random_keep
from tests.support import tiny, tiny_families

SMALL = sorted(tiny.SMALL)


def prepared(kind: str) -> tuple[nn.Module, Anatomy]:
    """A tiny model, ready to be cut, and its blocks."""
    if kind in tiny_families.FAMILIES:
        model = tiny_families.model(kind)
        return model, anatomy_of(model.config)
    model = tiny.small(kind)
    anatomy = anatomy_of(model.config, tiny.TASKS[kind])
    architecture_of(model.config).prepare(model, anatomy)
    return model, anatomy


def batches(anatomy: Anatomy, count: int = 2, rows: int = 4, length: int = 16) -> list[WalkBatch]:
    """Random tokens. The last two of each row do not count. A decoder has fewer tokens than its encoder."""
    walk_batches = []
    for number in range(count):
        inputs: dict[str, Any] = {"input_ids": tiny.ids(rows, length, seed=number)}
        sides = [tokens(rows, length)]
        if anatomy.decoder_prefix:
            inputs["decoder_input_ids"] = tiny.ids(rows, length - 5, seed=100 + number)
            sides.append(tokens(rows, length - 5))
        inputs["attention_mask"] = sides[0].counted.view(rows, length).long()
        if not anatomy.task_heads:  # encoders have no cache
            inputs["use_cache"] = False
        walk_batches.append(WalkBatch(calling(inputs), *sides))
    return walk_batches


def tokens(rows: int, length: int) -> WalkTokens:
    counted = torch.ones(rows, length, dtype=torch.bool)
    counted[:, -2:] = False
    return WalkTokens(counted.flatten(), (torch.arange(rows) % 2).repeat_interleave(length))


def calling(inputs: dict[str, Any]) -> Callable[[nn.Module], Any]:
    return lambda base: base(**inputs)


@torch.no_grad()
def inputs_of_a_whole_pass(model: nn.Module, paths: list[str], given: list[WalkBatch]) -> dict[str, list[torch.Tensor]]:
    seen: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    handles = []
    for path in paths:
        take = seen[path].append

        def hook(module: nn.Module, args: tuple[Any, ...], take: Any = take) -> None:
            take(args[0].flatten(0, -2))

        handles.append(model.get_submodule(path).register_forward_pre_hook(hook, prepend=True))
    for batch in given:
        batch.run(pretrained_model(model).base_model)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", [*SMALL, *sorted(tiny_families.FAMILIES)])
def test_inputs_are_those_of_a_whole_pass_under_masks(kind: str) -> None:
    model, anatomy = prepared(kind)
    masks = Masks(anatomy)
    masks.set(random_keep(anatomy, 2).astype(float))
    masks.install(model)
    given = batches(anatomy)
    paths = [site.consumer for site in anatomy.sites]
    expected = inputs_of_a_whole_pass(model, paths, given)
    sizes = {True: given[0].decoder_tokens, False: given[0].tokens}
    with torch.no_grad():
        walk = LayerWalk(model, anatomy, given)
        for number, layer in enumerate(anatomy.layers):
            for path in (path for path in paths if path.startswith(f"{layer}.")):
                seen: list[torch.Tensor] = []

                def take(x: torch.Tensor, tokens: WalkTokens, seen: list[Any] = seen, path: str = path) -> None:
                    seen.append(x)
                    side = sizes[bool(anatomy.decoder_prefix) and path.startswith(anatomy.decoder_prefix)]
                    assert side is not None and len(tokens.counted) == len(side.counted) == len(x)

                walk.inputs_of(number, model.get_submodule(path), take)
                assert len(seen) == len(given)
                assert all(torch.equal(a, b) for a, b in zip(seen, expected.pop(path), strict=True))
            if number + 1 < len(anatomy.layers):
                walk.advance(number)
    assert not expected
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_change_of_the_encoder_reaches_the_decoder() -> None:
    model, anatomy = prepared("t5")
    given, last = batches(anatomy), anatomy.sites[-1].consumer
    with torch.no_grad():
        walk = LayerWalk(model, anatomy, given)
        model.get_submodule(anatomy.sites[0].consumer).weight.mul_(np.sqrt(2))
        for number in range(len(anatomy.layers) - 1):
            walk.advance(number)
        seen: list[torch.Tensor] = []
        walk.inputs_of(len(anatomy.layers) - 1, model.get_submodule(last), lambda x, tokens: seen.append(x))
    expected = inputs_of_a_whole_pass(model, [last], given)[last]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
