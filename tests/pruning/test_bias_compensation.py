"""Biases take over the means of what a cut removes, and every written form holds them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models import quantization
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.blocks import HIDDEN, Anatomy, Sublayer, block_slices
from apt_ds.models.export import write
from apt_ds.pruning.bias_compensation import compensate, lacks_biases
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.runtime.zero import EngineState
from tests.pruning.test_masks import random_keep, with_adapters
from tests.support import tiny, tiny_families

Inputs = dict[int, torch.Tensor]


def without_hidden(anatomy: Anatomy, seed: int) -> np.ndarray:
    keep = random_keep(anatomy, seed)
    keep[dict(block_slices(anatomy.sizes))[HIDDEN]] = True
    return keep


def inputs_of(model: torch.nn.Module, anatomy: Anatomy) -> Inputs:
    """What every consumer reads in one pass, [tokens, channels]."""
    seen: Inputs = {}
    handles = [
        model.get_submodule(site.consumer).register_forward_pre_hook(
            lambda module, args, number=number: seen.__setitem__(number, args[0].detach().flatten(0, 1))
        )
        for number, site in enumerate(anatomy.sites)
    ]
    tiny.answer(model)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", ["gqa", "bert-classes", "roberta-answers"])
def test_the_mean_output_of_a_consumer_stays(kind: str) -> None:
    if kind == "gqa":
        model, anatomy = with_adapters(kind)
    else:
        model = tiny.small(kind)
        anatomy = anatomy_of(model.config, tiny.TASKS[kind])
    keep, inputs = without_hidden(anatomy, 0), inputs_of(model, anatomy)
    outputs = {n: model.get_submodule(anatomy.sites[n].consumer)(x).mean(0) for n, x in inputs.items()}
    plain = copy.deepcopy(model)
    means = {number: x.mean(0).double().numpy() for number, x in inputs.items()}
    assert not lacks_biases(model, anatomy)
    assert compensate(model, anatomy, keep, means) == [site.consumer for site in anatomy.sites]
    for each in (model, plain):
        apply_plan(each, anatomy, Plan(keep=keep), None, torch.Generator())
    spans = dict(block_slices(anatomy.sizes))
    for number, x in inputs.items():
        site = anatomy.sites[number]
        kept = x[:, torch.from_numpy(keep[spans[number]].repeat(site.unit))]
        cut, bare = (each.get_submodule(site.consumer)(kept).mean(0) for each in (model, plain))
        assert torch.allclose(cut, outputs[number], atol=1e-4)
        assert (bare - outputs[number]).norm() > 100 * (cut - outputs[number]).norm()


def test_masters_follow_and_layers_that_lose_nothing_stay() -> None:
    model = tiny.small("bert-classes")
    anatomy = anatomy_of(model.config, tiny.TASKS["bert-classes"])
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    keep[0] = False
    path = anatomy.sites[0].consumer
    state = EngineState({f"{path}.bias": {"master": model.get_submodule(path).bias.detach().clone()}}, 0.0)
    means = {number: np.full(site.unit * n, 0.3) for number, (site, n) in enumerate(_sites(anatomy))}
    assert compensate(model, anatomy, keep, means, state) == [path]
    assert torch.equal(state.tensors[f"{path}.bias"]["master"], model.get_submodule(path).bias)


def test_a_base_of_4_bits_gets_biases_of_the_run_s_dtype() -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny.model(hidden_size=64, intermediate_size=256, num_attention_heads=4)
    anatomy = anatomy_of(model.config)
    paths = [site.consumer for site in anatomy.sites]
    quantization.hold(model, paths, 4, torch.float32)
    keep, means = without_hidden(anatomy, 3), {n: np.full(s.unit * k, 0.3) for n, (s, k) in enumerate(_sites(anatomy))}
    assert compensate(model, anatomy, keep, means) == paths
    spans = dict(block_slices(anatomy.sizes))
    for number, site in enumerate(anatomy.sites):
        consumer, gone = model.get_submodule(site.consumer), torch.from_numpy(~keep[spans[number]].repeat(site.unit))
        expected = 0.3 * quantization.dense(consumer.weight)[:, gone].sum(1)
        assert torch.allclose(consumer.bias, expected, atol=1e-5) and not consumer.bias.requires_grad


def _sites(anatomy: Anatomy) -> list[tuple[Sublayer, int]]:
    return list(zip(anatomy.sites, anatomy.sizes.counts, strict=True))


def test_a_family_without_such_biases_keeps_its_weights() -> None:
    model = tiny_families.model("qwen3")
    anatomy = anatomy_of(model.config)
    means = {number: np.ones(site.unit * n) for number, (site, n) in enumerate(_sites(anatomy))}
    assert lacks_biases(model, anatomy)
    assert compensate(model, anatomy, without_hidden(anatomy, 1), means) == []


@pytest.mark.parametrize("form", ["stock", "adaptive", "padded"])
def test_every_form_of_a_llama_holds_new_biases(form: str, tmp_path: Path) -> None:
    model = tiny.model("mha")
    anatomy, base = anatomy_of(model.config), copy.deepcopy(model)
    keep = without_hidden(anatomy, 2)
    if form == "stock":
        for number, span in block_slices(anatomy.sizes):
            if number != HIDDEN:
                keep[span] = np.arange(span.stop - span.start) < {"head": 2, "neuron": 20}[anatomy.kind(number)]
    if form == "padded":
        keep[dict(block_slices(anatomy.sizes))[2]] = True  # a consumer that keeps its input gets a zero bias
    means = {number: x.mean(0).double().numpy() for number, x in inputs_of(model, anatomy).items()}
    compensate(model, anatomy, keep, means)
    smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    folder = tmp_path / "model"
    write.export(
        model, smaller, base.config, None, tiny.tokenizer(), folder, task=LANGUAGE_MODEL, dtype=torch.float32, form=form
    )
    loaded, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=form == "adaptive", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert (loaded.config.attention_bias, loaded.config.mlp_bias) == (True, True)
    assert torch.allclose(loaded(tiny.ids()).logits, model(tiny.ids()).logits, atol=1e-5)
    assert not base.config.attention_bias and not base.config.mlp_bias
