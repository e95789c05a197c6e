"""Weights of 4 and 8 bits: what they stand for, which layers have them, what is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter, fingerprint, loading, quantization, quantization_checks, task_heads
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import block_slices
from apt_ds.models.export import write
from apt_ds.pruning.kurtosis import effective_weight
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.runtime import packed
from apt_ds.runtime.packed import QuantizedParameter
from tests.support import tiny
from tests.support.tiny_quantized import ERROR, SIZES, Loaded, projections, relative

CPU = torch.device("cpu")

each_width = pytest.mark.parametrize("bits", [4, 8])


@each_width
def test_all_projections_are_packed_and_close_to_the_base(bits: int, load: Callable[..., Loaded]) -> None:
    model, anatomy = load(bits, adapted=False)
    plain, _ = load(16, adapted=False)
    for path, module in projections(model, anatomy).items():
        assert isinstance(module.weight, QuantizedParameter) and not module.weight.requires_grad
        error = relative(quantization.dense(module.weight), plain.get_submodule(path).weight)
        assert ERROR[bits] / 4 < error < ERROR[bits], path
        size = module.weight.numel() * module.weight.element_size()
        assert size == module.in_features * module.out_features * bits // 8
    assert type(model.lm_head) is nn.Linear and type(model.model.embed_tokens) is nn.Embedding
    assert loading.count_parameters(model) == loading.count_parameters(plain)


@each_width
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_a_product_is_that_of_the_dequantized_weight(
    bits: int, dtype: torch.dtype, load: Callable[..., Loaded]
) -> None:
    model, anatomy = load(bits, dtype, adapted=False)
    weight = model.get_submodule(anatomy.targets["down"][0]).weight
    x = torch.randn(2, 5, 256, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    product, expected = quantization.linear(x, weight), F.linear(y, quantization.dense(weight))
    product.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(product, expected) and torch.equal(x.grad, y.grad)


@each_width
def test_scores_see_the_dequantized_weight(bits: int, load: Callable[..., Loaded]) -> None:
    model, anatomy = load(bits)
    for path, module in projections(model, anatomy).items():
        with effective_weight(module) as weight:
            base = quantization.dense(module.weight)
            assert weight.shape == (module.out_features, module.in_features), path
            if isinstance(module, adapter.AptLinear):
                base = base + adapter.SCALE * module.lora_B @ module.lora_A
            assert torch.allclose(weight, base, atol=1e-6)


def test_a_fingerprint_sees_codes_and_scales(load: Callable[..., Loaded]) -> None:
    fingerprints = set()
    for change in ("nothing", "codes", "scales"):
        model, anatomy = load(4, adapted=False)
        weight = model.get_submodule(anatomy.targets["up"][0]).weight
        if change == "codes":
            weight.data.view(torch.uint8)[7] += 1
        if change == "scales":
            weight.scales.absmax[3] += 1
        fingerprints.add(fingerprint.fingerprint(model))
    assert len(fingerprints) == 3


def run_of(**options: object) -> RunConfig:
    return RunConfig(model_name_or_path="m", data_path="d").replace(**options)


REFUSED: dict[str, tuple[dict[str, object], dict[str, int], list[str]]] = {
    "all weights": ({"base_bits": 4, "train": "all"}, {}, ["--base_bits 4", "--train all", "--method full"]),
    "Taylor": ({"base_bits": 8, "score": "taylor"}, {}, ["--base_bits 8", "--score taylor", "--score salience"]),
    "other export": ({"base_bits": 8, "export_bits": 4}, {}, ["--export_bits 4", "give 16"]),
    "export alone": ({"export_bits": 8}, {}, ["--export_bits 8", "give 16"]),
    "inputs": ({"base_bits": 4}, {"hidden_size": 160}, ["160 inputs", "multiple of 64", "--base_bits 8"]),
    "neurons": ({"base_bits": 4}, {"intermediate_size": 272}, ["272 outputs", "multiple of 32"]),
    "alignment": ({"base_bits": 4, "align": 16}, {}, ["pruning neuron blocks", "outputs", "--align"]),
    "heads": ({"base_bits": 4}, {"num_key_value_heads": 4}, ["pruning head blocks", "inputs", "--prune_blocks"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(name: str) -> None:
    options, sizes, parts = REFUSED[name]
    anatomy = anatomy_of(tiny.config(**(SIZES | sizes)))
    with pytest.raises(UserError) as caught:
        quantization_checks.check(run_of(**options), anatomy, CPU)
    assert [part for part in parts if part not in str(caught.value)] == [] and "\n" not in str(caught.value)


WIDE = {"hidden_size": 128, "intermediate_size": 256, "embedding_size": 96, "pooler_hidden_size": 128}
WIDE["num_attention_heads"] = 2  # 64 dimensions each
# bits, and the layers that stay plain
CLASSIFIERS = {
    "bert-classes": (8, ["bert.pooler.dense", "classifier"]),
    "electra-answers": (4, ["qa_outputs", "electra.embeddings_project"]),
    "modernbert-classes": (4, ["head.dense", "classifier"]),
    "deberta-classes": (8, ["pooler.dense", "classifier", "deberta.embeddings.embed_proj"]),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_heads_that_are_trained_whole_are_not_quantized(kind: str, tmp_path: Path) -> None:
    """A base of few bits is cut, with adapters, and written: transformers alone reads the same answers."""
    (bits, plain), task = CLASSIFIERS[kind], tiny.TASKS[kind]
    model_class, config_class, _ = tiny.SMALL[kind]
    config = config_class(**tiny.small(kind).config.to_dict() | WIDE)
    torch.manual_seed(0)
    source = model_class(config)
    for name, parameter in source.named_parameters():
        parameter.data.uniform_(0.5, 1.5) if "norm" in name.lower() else parameter.data.normal_(0, 0.08)
    source.save_pretrained(tmp_path / "base")
    anatomy, spec = anatomy_of(config, task), architecture_of(config)
    quantization_checks.check(run_of(base_bits=bits, align=64), anatomy, CPU)
    assert list(quantization.plain_layers(anatomy)) == plain
    eager = torch.float32, "eager"
    model, missing = loading.read_weights(str(tmp_path / "base"), *eager, task, bits=bits, plain=tuple(plain))
    quantized = {path for path, module in model.named_modules() if isinstance(module, quantization.QuantizedLinear)}
    assert not missing and quantized == {path for paths in anatomy.targets.values() for path in paths}
    spec.prepare(model, anatomy)
    adapter.attach(model, anatomy, ("q", "v", "up"), 3, 1)
    task_heads.attach(model, anatomy)
    for _, module in adapter.adapters(model):
        module.lora_B.data.normal_(0, 0.1)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        keep[span.start : span.start + {"head": 1, "neuron": 64, "hidden": 64}[anatomy.kind(site)]] = False
    smaller = apply_plan(model.eval(), anatomy, Plan(keep=keep), None, torch.Generator())
    for at in (16, bits):
        folder = tmp_path / f"{at}"
        write.export(model, smaller, config, None, tiny.tokenizer(), folder, task=task, bits=at)
        read, _ = loading.read_weights(str(folder), *eager, task)
        kinds = {type(read.get_submodule(path)).__name__ for path in quantized}
        assert kinds == {"Linear" if at == 16 else "QuantizedLinear"}
        # adapters are merged before the weights are quantized again
        expected, answer = tiny.answer(model), tiny.answer(read)
        error = (answer - expected).norm() / (expected - expected.mean()).norm()
        assert error < {16: 1e-5, 8: 0.03, 4: 0.2}[at]


def test_sizes_that_nothing_cuts_or_that_eight_bits_take_are_allowed() -> None:
    odd = anatomy_of(tiny.config())
    quantization_checks.check(run_of(base_bits=8), odd, CPU)
    quantization_checks.check(run_of(), odd, CPU)
    heads = anatomy_of(tiny.config(**SIZES, num_key_value_heads=4))
    quantization_checks.check(run_of(base_bits=4, prune_blocks="neurons"), heads, CPU)
    quantization_checks.check(run_of(base_bits=4, pruning="none"), heads, CPU)


@pytest.mark.parametrize("option", [{"base_bits": 4}, {"optim": "adamw_8bit"}])
def test_a_missing_library_or_device_is_named(option: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy, flag = anatomy_of(tiny.config(**SIZES)), "--" + " ".join(map(str, *option.items()))
    with pytest.raises(UserError, match=f"{flag}: bitsandbytes does not support meta"):
        quantization_checks.check(run_of(**option), anatomy, torch.device("meta"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{flag} needs bitsandbytes: pip install 'apt_ds\[quantized\]'"):
        quantization_checks.check(run_of(**option), anatomy, CPU)


OPTIMIZER = "offload_optimizer"
OFFLOADED = {
    "moments of 8 bits": (OPTIMIZER, {"device": "cpu"}, "adamw_8bit", "offload_optimizer requires --optim adamw_torch"),
    "no such folder": (OPTIMIZER, {"device": "nvme", "nvme_path": "/none"}, "adamw_torch", "'/none' is not a folder"),
    "no folder named": (OPTIMIZER, {"device": "nvme"}, "adamw_torch", "nvme_path '' is not a folder"),
    "weights on a disk": ("offload_param", {"device": "nvme", "nvme_path": "/tmp"}, "adamw_torch", "Use 'cpu'"),
}


@pytest.mark.parametrize("name", OFFLOADED)
def test_offload_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    part, section, optim, message = OFFLOADED[name]
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, part: section}}), encoding="utf8")
    with pytest.raises(UserError, match=message):
        load_config(run_of(deepspeed=str(path), optim=optim), 1, 128)


@pytest.mark.parametrize("bits", [4, 8])
def test_drawn_weights_are_quantized_too(bits: int, quantizable: Path) -> None:
    """What the benchmark measures must be what it names."""
    base = loading.find_base(str(quantizable))
    model = loading.load_model(replace(base, random=True), RunConfig(base_bits=bits))
    paths = [path for paths in base.anatomy.targets.values() for path in paths]
    weights = [model.get_submodule(path).weight for path in paths]
    assert all(isinstance(weight, packed.QuantizedParameter) and weight.bits == bits for weight in weights)
    assert torch.isfinite(model(tiny.ids()).logits).all()


@pytest.mark.parametrize(("kind", "needed"), [("nf4", 64), ("w4a16", 32)])
def test_a_hidden_size_that_stays_is_refused_before_training(kind: str, needed: int) -> None:
    hidden = needed + needed // 2
    anatomy = anatomy_of(tiny.config(hidden_size=hidden))
    run = RunConfig(model_name_or_path="m", data_path="d", export_quantization=kind, prune_blocks="neurons")
    text = f"--export_quantization {kind} needs rows of a multiple of {needed} weights, and the model keeps its "
    with pytest.raises(UserError, match=f"^{text}hidden size of {hidden}"):
        quantization_checks.check(run, anatomy, torch.device("cpu"))
    try:
        quantization_checks.check(run.replace(prune_blocks="hidden"), anatomy, torch.device("cpu"))
    except UserError as error:
        # the library may be missing
        assert "hidden size" not in str(error)
