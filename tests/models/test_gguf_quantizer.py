"""q4_k_m: which bits a tensor gets, and that ggml's rows are near the plain ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest

from apt_ds.config.errors import UserError
from apt_ds.models.export import gguf_quantizer

NAMES = ["token_embd.weight", *(f"blk.{layer}.ffn_down.weight" for layer in range(16))]


def test_types_are_those_of_llama_cpp() -> None:
    """The outer eighths of the layers, and every third one between them, get 6 bits where it matters."""
    six = [gguf_quantizer.type_of(f"blk.{i}.attn_v.weight", [256, 64], NAMES, 0) == "Q6_K" for i in range(16)]
    assert [i for i, more in enumerate(six) if more] == [0, 1, 4, 7, 10, 13, 14, 15]

    def kind(name: str, columns: int = 256, names: list[str] = NAMES, experts: int = 0) -> str:
        return gguf_quantizer.type_of(name, [columns, 64], names, experts)

    assert kind("token_embd.weight") == "Q6_K"
    assert kind("token_embd.weight", names=[*NAMES, "output.weight"]) == "Q4_K"
    assert kind("blk.2.ffn_up.weight") == "Q4_K" and kind("blk.2.attn_qkv.weight") == "Q5_K"
    assert kind("blk.2.attn_k.weight", experts=8) == "Q8_0"
    assert [kind("blk.2.ffn_up.weight", n) for n in (192, 200)] == ["Q5_0", ""]
    assert [kind("blk.0.ffn_down.weight", n) for n in (192, 200)] == ["Q8_0", ""]
    assert kind("blk.2.attn_norm.weight") == kind("blk.2.ffn_gate_inp.weight") == kind("blk.2.attn_q.bias") == ""
    assert gguf_quantizer.type_of("rope_freqs.weight", [32], NAMES, 0) == ""


def test_types_of_a_whole_model_are_those_of_a_published_file() -> None:
    """Gemma 3 270M as q4_k_m, whose rows of 640 are no whole blocks of 256. The counts are of a file of llama.cpp."""
    shapes = {"attn_q": (640, 1024), "attn_k": (640, 256), "attn_v": (640, 256), "attn_output": (1024, 640)}
    shapes |= {"ffn_gate": (640, 2048), "ffn_up": (640, 2048), "ffn_down": (2048, 640)}
    tensors = {f"blk.{layer}.{name}.weight": list(shape) for layer in range(18) for name, shape in shapes.items()}
    tensors["token_embd.weight"] = [640, 262144]
    kinds = Counter(gguf_quantizer.type_of(name, shape, list(tensors), 0) for name, shape in tensors.items())
    assert kinds == {"Q5_0": 81, "Q4_K": 27, "Q8_0": 10, "Q6_K": 9}


def test_a_file_is_quantized_with_ggml(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    draw = np.random.default_rng(0)
    plain = {name: draw.normal(size=(64, 256)).astype(np.float16) for name in NAMES}
    writer = gguf.GGUFWriter(tmp_path / "plain.gguf", "llama")
    writer.add_file_type(1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name, values in plain.items():
        writer.add_tensor(name, values)
    writer.add_tensor("output_norm.weight", np.ones(256, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    gguf_quantizer.quantize_with_ggml(gguf_quantizer.library(), tmp_path / "plain.gguf", tmp_path / "small.gguf")
    reader = gguf.GGUFReader(tmp_path / "small.gguf")
    assert reader.get_field("general.file_type").contents() == gguf_quantizer.FILE_TYPE
    assert reader.get_field("tokenizer.ggml.tokens").contents() == ["a", "b"]
    bounds = {"Q4_K": 0.08, "Q6_K": 0.02, "F32": 0.0}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = plain.get(tensor.name, np.ones(256)).astype(np.float32)
        error = np.linalg.norm(values - expected) / np.linalg.norm(expected)
        assert error <= bounds[tensor.tensor_type.name], tensor.name


def test_a_missing_quantizer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_quantizer.shutil, "which", lambda name: None)
    monkeypatch.setattr(gguf_quantizer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="llama-quantize on it"):
        gguf_quantizer.check_quantizer()
    monkeypatch.setattr(gguf_quantizer.shutil, "which", lambda name: "/bin/llama-quantize")
    gguf_quantizer.check_quantizer()


def test_llama_quantize_on_the_path_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "llama-quantize"
    program.write_text('#!/bin/sh\n[ "$3" = Q4_K_M ] && cp "$1" "$2" || { echo "no type" >&2; exit 1; }\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    (tmp_path / "in.gguf").write_text("weights")
    gguf_quantizer.quantize(tmp_path / "in.gguf", tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == "weights"
    with pytest.raises(UserError, match="llama-quantize failed"):
        gguf_quantizer.quantize(tmp_path / "absent.gguf", tmp_path / "other.gguf")
