"""Quantized copies of a model folder load as any folder does, and lose what the figures say."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from apt_ds.config.errors import UserError
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.export import quantize, quantize_formats, write
from apt_ds.models.export.quantize import quantize_folder
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.pruning.test_masks import random_keep
from tests.support import tiny, tiny_experts

SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
ERROR = {"fp8": 0.03, "w4a16": 0.12, "nf4": 0.12}  # of a matrix of normal numbers
LIBRARIES = {"fp8": "compressed_tensors", "w4a16": "compressed_tensors", "nf4": "bitsandbytes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("quantize") / "model", **SIZES)


def loaded(folder: Path) -> Tensor:
    """Logits of a folder, loaded as users do."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    with torch.no_grad():
        return model(tiny.ids()).logits.float()


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("kind", ERROR)
def test_a_copy_loads_and_is_near_the_model(kind: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip(LIBRARIES[kind])
    before = hashes(folder)
    into, figures = quantize_folder(folder, kind, tmp_path / "copy")
    assert hashes(folder) == before and into == tmp_path / "copy" and not list(tmp_path.glob("*.tmp"))
    assert 0 < figures["mean_weight_error"] <= figures["largest_weight_error"] < ERROR[kind]
    assert figures["bytes"] < 0.75 * figures["bytes_before"]
    expected, logits = loaded(folder), loaded(into)
    error = float((logits - expected).norm() / expected.norm())
    assert 0 < error < 12 * ERROR[kind]
    assert (into / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_the_written_scales_are_those_that_are_used(folder: Path, tmp_path: Path) -> None:
    """What transformers unpacks is as far from the weights as the figures say."""
    pytest.importorskip("compressed_tensors")
    into, figures = quantize_folder(folder, "w4a16", tmp_path / "copy")
    plain, copied = (AutoModelForCausalLM.from_pretrained(place) for place in (folder, into))
    copied(tiny.ids(1))  # unpacks the weights
    errors = []
    for name, weight in plain.model.layers.state_dict().items():
        if name.endswith("proj.weight"):
            unpacked = copied.model.layers.get_parameter(name).detach()
            errors.append(float((unpacked - weight).norm() / weight.norm()))
    assert max(errors) == pytest.approx(figures["largest_weight_error"], rel=1e-4)


def test_sizes_by_layer(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    model = tiny.model(**SIZES)
    anatomy, base = anatomy_of(model.config), copy.deepcopy(model.config)
    smaller = apply_plan(model, anatomy, Plan(keep=random_keep(anatomy, 1)), None, torch.Generator())
    write.export(model, smaller, base, None, tiny.tokenizer(), tmp_path / "model")
    into, _ = quantize_folder(tmp_path / "model", "fp8")
    assert into == tmp_path / "model-fp8"
    expected = loaded(tmp_path / "model")
    assert (loaded(into) - expected).norm() / expected.norm() < 12 * ERROR["fp8"]
    assert {file.name for file in into.glob("*.py")} == {file.name for file in (tmp_path / "model").glob("*.py")}
    with pytest.raises(UserError, match=r"w4a16 needs rows of a multiple of 32 weights, but those of model\.layers"):
        quantize_folder(tmp_path / "model", "w4a16")
    assert not (tmp_path / "model-w4a16").exists()


def test_a_task_head_is_not_quantized(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    tiny.small("bert-classes").save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    into, _ = quantize_folder(tmp_path / "model", "fp8")
    ignored = json.loads((into / "config.json").read_text(encoding="utf8"))["quantization_config"]["ignore"]
    assert set(ignored) == {"bert.pooler.dense", "classifier"}
    model = AutoModelForSequenceClassification.from_pretrained(into).eval()
    with torch.no_grad():
        assert model(tiny.ids()).logits.shape == (3, 2)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(model.classifier.weight, plain.classifier.weight)


def test_the_largest_group_that_divides_all_rows() -> None:
    for columns, size in (((256, 384), 128), ((256, 576), 64), ((256, 96), 32)):
        layers = {f"layer{number}": (8, count) for number, count in enumerate(columns)}
        assert quantize_formats.group_size(layers) == size
    with pytest.raises(UserError, match=r"those of layer1 have 912"):
        quantize_formats.group_size({"layer0": (8, 64), "layer1": (8, 912)})


def test_shrunk_groups_are_nearer_than_whole_ones(folder: Path) -> None:
    """Rounding to 4 bits gains from scales below the largest value."""
    pytest.importorskip("compressed_tensors")
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    form = quantize_formats.make("w4a16", {"a": (64, 128)}, [], torch.float32)
    form.tensors("a.weight", weight)
    whole = weight.abs().amax(1, keepdim=True) / 7.5
    error = ((weight / whole).round().clamp(-8, 7) * whole - weight).norm() / weight.norm()
    assert form.errors[0] < float(error)


def test_what_cannot_be_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    copied, _ = quantize_folder(folder, "fp8", tmp_path / "copy")
    narrow = tiny.save_model(tmp_path / "narrow")
    mixture = tiny_experts.save(tmp_path / "mixture", "mixtral")
    cases = [
        (copied, "fp8", tmp_path / "x", "quantized weights already"),
        (folder, "fp8", folder, "the 16-bit folder itself"),
        (folder, "fp8", folder.parent, "the 16-bit folder itself, or contains it"),
        (folder, "fp8", narrow, "exists and is no quantized copy"),
        (narrow, "nf4", tmp_path / "x", "nf4 needs rows of a multiple of 64 weights"),
        (mixture, "fp8", tmp_path / "x", "mixture of experts"),
        (tmp_path, "fp8", tmp_path / "x", "not a model folder"),
    ]
    for source, kind, into, words in cases:
        with pytest.raises(UserError, match=words) as error:
            quantize_folder(source, kind, into)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()
    assert (folder / "config.json").is_file() and (narrow / "config.json").is_file()


def test_half_a_file_of_weights_is_one_line(tmp_path: Path) -> None:
    place = tiny.save_model(tmp_path / "model")
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors") as error:
        quantize_folder(place, "fp8", tmp_path / "x")
    assert "\n" not in str(error.value)


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs compressed-tensors: pip install 'apt_ds\[quantize\]'"):
        quantize_formats.make("fp8", {"a": (8, 8)}, [], torch.float32)


def test_the_command_prints_sizes_and_errors(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("compressed_tensors")
    monkeypatch.setattr(sys, "argv", ["quantize", str(folder), "--to", "w4a16", "--into", str(tmp_path / "copy")])
    quantize.main()
    printed = capsys.readouterr().out
    assert f"wrote {tmp_path / 'copy'}" in printed and "Relative error of a matrix: 0." in printed
