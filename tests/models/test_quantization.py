"""Weights of 4 and 8 bits: what they stand for, how they are cut, what is written, what is refused."""

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
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from apt_ds.config.deepspeed_config import load_config
from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.models import adapter, fingerprint, loading, quantization, quantization_checks, task_heads
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import Anatomy, block_slices
from apt_ds.models.export import write
from apt_ds.pruning.kurtosis import effective_weight
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.surgery import Plan, apply_plan, element_index
from apt_ds.runtime import packed
from apt_ds.runtime.packed import QuantizedParameter
from tests.support import tiny

# rows are whole blocks of 64: two groups of 64 query columns, 4 x 64 neurons
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
CPU = torch.device("cpu")
# relative error of a random normal weight: NF4, int8
ERROR = {4: 0.11, 8: 0.01}

each_width = pytest.mark.parametrize("bits", [4, 8])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("quantized") / "model", **SIZES)


Loaded = tuple[LlamaForCausalLM, Anatomy]


@pytest.fixture
def load(folder: Path) -> Callable[..., Loaded]:
    def make(bits: int, dtype: torch.dtype = torch.float32, adapted: bool = True) -> Loaded:
        model = loading.read_weights(str(folder), dtype, "eager", bits=bits)[0].eval()
        anatomy = anatomy_of(model.config)
        if adapted:
            adapter.attach(model, anatomy, ("q", "down"), rank=3, seed=1)
            torch.manual_seed(0)
            for _, module in adapter.adapters(model):
                module.lora_B.data.normal_(0, 0.02)
        return model, anatomy

    return make


def projections(model: nn.Module, anatomy: Anatomy) -> dict[str, nn.Linear]:
    return {path: model.get_submodule(path) for name in PROJECTIONS for path in anatomy.targets[name]}


def relative(values: torch.Tensor, expected: torch.Tensor) -> float:
    return ((values - expected).norm() / expected.norm()).item()


def scattered(anatomy: Anatomy) -> np.ndarray:
    """Half of the neurons here and there, and one head group of each layer, go."""
    keep, draw = np.ones(anatomy.sizes.total(), dtype=bool), np.random.default_rng(0)
    for site, span in block_slices(anatomy.sizes):
        if anatomy.kind(site) == "neuron":
            keep[span] = draw.permutation(span.stop - span.start) % 2 == 0
        if anatomy.kind(site) == "head":
            keep[span.start] = False
    return keep


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


@pytest.mark.parametrize(("bits", "bound"), [(4, 0.25), (8, 0.02)])
def test_masked_equals_cut_within_quantization(bits: int, bound: float, load: Callable[..., Loaded]) -> None:
    masked, anatomy = load(bits)
    cut, _ = load(bits)
    keep = scattered(anatomy)
    masks = Masks(anatomy)
    masks.install(masked)
    masks.set(keep.astype(float))
    smaller = apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    expected = masked(tiny.ids()).logits
    assert relative(cut(tiny.ids()).logits, expected) < bound
    # it is quantizing anew that makes the difference, and nothing else
    masks.remove()
    plain, _ = load(bits)
    for path, module in projections(plain, anatomy).items():
        weight = nn.Parameter(quantization.dense(module.weight), requires_grad=False)
        plain.get_submodule(path).weight = weight
    apply_plan(plain, anatomy, Plan(keep=keep), None, torch.Generator())
    assert relative(plain(tiny.ids()).logits, expected) < 1e-5
    counted = sum(m.weight.full.numel() for m in projections(cut, smaller).values())
    assert smaller.num_parameters(smaller.sizes) == counted


def test_masked_equals_cut_where_whole_blocks_go(load: Callable[..., Loaded]) -> None:
    masked, anatomy = load(4)
    cut, _ = load(4)
    keep = np.ones(anatomy.sizes.total(), dtype=bool)
    for site, span in block_slices(anatomy.sizes):
        if site >= 0:
            keep[span.start : span.start + (1 if anatomy.kind(site) == "head" else 64)] = False
    masks = Masks(anatomy)
    masks.install(masked)
    masks.set(keep.astype(float))
    apply_plan(cut, anatomy, Plan(keep=keep), None, torch.Generator())
    # their codes stay: only the scales are rounded again
    assert relative(cut(tiny.ids()).logits, masked(tiny.ids()).logits) < 0.02
    assert 0 < quantization.summary(cut)["requantization_error_max"] < 0.01


@pytest.mark.parametrize(("bits", "ratio"), [(4, 1.5), (8, 1.5)])
def test_a_cut_costs_little_more_than_quantizing_what_was_cut(
    bits: int, ratio: float, load: Callable[..., Loaded]
) -> None:
    model, anatomy = load(bits, adapted=False)
    plain, _ = load(16, adapted=False)
    keep = scattered(anatomy)
    slots = {slot.path: slot for slot in anatomy.slots}
    apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
    apply_plan(plain, anatomy, Plan(keep=keep), None, torch.Generator())
    for path, module in projections(model, anatomy).items():
        original = plain.get_submodule(path).weight
        sliced_first = relative(quantization.dense(quantization.pack(original, bits, torch.float32)), original)
        error = relative(quantization.dense(module.weight), original)
        assert error < ratio * sliced_first, path
        columns = element_index(slots[path].columns, keep, anatomy)
        if bits == 4 and columns is None:
            # whole rows: the codes are the same ones
            assert error < 1.02 * sliced_first, path
        assert module.weight.requantization_error < ratio * sliced_first
        assert (module.out_features, module.in_features) == tuple(original.shape)
    assert set(quantization.summary(model)) == {"requantization_error_mean", "requantization_error_max"}
    assert quantization.summary(plain) == {}


@each_width
def test_growth_leaves_outputs_bit_for_bit(bits: int, load: Callable[..., Loaded]) -> None:
    model, anatomy = load(bits)
    path, grown = next(adapter.adapters(model))
    with torch.no_grad():
        # whole numbers: sums are exact in any order, so that only a change of the function can show
        grown.lora_A.copy_((grown.lora_A * 30).round())
        grown.lora_B.copy_((grown.lora_B * 30).round())
    base = quantization.dense(grown.weight)
    x = torch.randint(-9, 9, (5, 128)).float()
    before = grown(x)
    apply_plan(model, anatomy, Plan(grow={path: 8}), None, torch.Generator().manual_seed(0))
    grown.lora_A.data[3:] = (grown.lora_A.data[3:] * 30).round()
    assert grown.lora_A.shape[0] == 8 and torch.equal(grown(x), before)
    assert torch.equal(quantization.dense(grown.weight), base)


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


@each_width
@pytest.mark.parametrize("kept", [False, True], ids=["to 16", "kept"])
def test_what_is_written(bits: int, kept: bool, load: Callable[..., Loaded], tmp_path: Path) -> None:
    model, anatomy = load(bits)
    base = tiny.config(**SIZES)
    smaller = apply_plan(model, anatomy, Plan(keep=scattered(anatomy)), None, torch.Generator())
    width = bits if kept else 16
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model", bits=width)
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf8"))
    assert ("quantization_config" in config) == kept
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    size = sum(t.numel() * t.element_size() for t in load_file(tmp_path / "model" / "model.safetensors").values())
    counted = loading.count_parameters(model, width)["checkpoint_bytes"]
    # tables that are the same for every weight, and what names its shape
    assert counted <= size < counted + 14 * 2048 * kept + 1
    logits = model(tiny.ids()).logits
    if not kept:
        assert relative(loaded(tiny.ids()).logits, logits) < 1e-5
        return
    quantization.convert_bnb_layers(loaded, torch.float32)
    for path, module in projections(loaded, smaller).items():
        own = model.get_submodule(path)
        if isinstance(own, adapter.AptLinear):
            assert relative(quantization.dense(module.weight), own.merged()) < ERROR[bits]
        else:
            assert torch.equal(quantization.dense(module.weight), quantization.dense(own.weight))
    assert relative(loaded(tiny.ids()).logits, logits) < 3 * ERROR[bits]
    # as its users run it: bitsandbytes' int8 product rounds activations too
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    with torch.no_grad():
        assert relative(plain(tiny.ids()).logits, logits) < {4: 0.4, 8: 0.1}[bits]


@each_width
def test_what_is_not_quantized_is_written_in_the_dtype_that_is_named(
    bits: int, load: Callable[..., Loaded], tmp_path: Path
) -> None:
    model, anatomy = load(bits)
    half = torch.bfloat16
    for width in (bits, 16):
        folder = tmp_path / str(width)
        write.export(model, anatomy, tiny.config(**SIZES), None, tiny.tokenizer(), folder, bits=width, dtype=half)
        config = json.loads((folder / "config.json").read_text(encoding="utf8"))
        assert config["dtype"] == "bfloat16"
        tensors = load_file(folder / "model.safetensors")
        names = {name for name, _ in model.named_parameters() if "lora_" not in name}
        kinds = {name: value.dtype for name, value in tensors.items() if name in names}
        whole = {name for name in names if width == 16 or not isinstance(model.get_parameter(name), QuantizedParameter)}
        assert {kinds[name] for name in whole} == {half} and len(kinds) == len(names)
        size = sum(value.nbytes for value in tensors.values())
        counted = loading.count_parameters(model, width, half)["checkpoint_bytes"]
        assert counted <= size < counted + 14 * 2048 * (width < 16) + 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(bits), attn_implementation="eager").eval()
    assert loaded.dtype == half
    quantization.convert_bnb_layers(loaded, half)
    with torch.no_grad():
        assert relative(loaded(tiny.ids()).logits.float(), model(tiny.ids()).logits) < 3 * ERROR[bits] + 2**-6


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
def test_drawn_weights_are_held_in_few_bits_too(bits: int, folder: Path) -> None:
    """What the benchmark measures must be what it names."""
    base = loading.find_base(str(folder))
    model = loading.load_model(replace(base, random=True), RunConfig(base_bits=bits))
    paths = [path for paths in base.anatomy.targets.values() for path in paths]
    weights = [model.get_submodule(path).weight for path in paths]
    assert all(isinstance(weight, packed.QuantizedParameter) and weight.bits == bits for weight in weights)
    assert torch.isfinite(model(tiny.ids()).logits).all()
