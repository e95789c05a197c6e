"""Quantizes a GGUF file to q4_k_m: with `llama-quantize` where it is on the path, else with ggml from xllamacpp.

xllamacpp contains llama.cpp, but neither `llama-quantize` nor `llama_model_quantize`. What it has is the function that
quantizes rows, `ggml_quantize_chunk`. The choice of bits for each tensor is then made here, as llama.cpp makes it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from apt_ds.config.errors import UserError

# a type that needs 256 columns: the one that needs 32 and stands in for it
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
NEVER = ("_norm.weight", "ffn_gate_inp.weight", "rope_freqs.weight", "rope_factors")
FILE_TYPE = 15  # LLAMA_FTYPE_MOSTLY_Q4_K_M
EXPERTS_OF_MIXTRAL = 8


def check_quantizer() -> None:
    """Raise UserError where nothing can quantize to q4_k_m."""
    if shutil.which("llama-quantize") is None:
        library()


def library() -> Any:
    """The functions of ggml in xllamacpp. Raises UserError."""
    spec = importlib.util.find_spec("xllamacpp")
    advice = "Install it: pip install 'apt_ds[gguf]'. Or write --outtype f16 and run llama.cpp's llama-quantize on it"
    if spec is None or spec.origin is None:
        raise UserError(f"--outtype q4_k_m needs xllamacpp, which is not installed. {advice}")
    for file in sorted(Path(spec.origin).parent.glob("xllamacpp*.so")):
        functions = ctypes.CDLL(str(file))
        if hasattr(functions, "ggml_quantize_chunk"):
            functions.ggml_quantize_chunk.restype = ctypes.c_size_t
            pointer, wide = ctypes.c_void_p, ctypes.c_int64
            functions.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, wide, wide, wide, pointer]
            return functions
    raise UserError(
        "--outtype q4_k_m: this xllamacpp has no quantizer. Write --outtype f16 and run llama-quantize on it"
    )


def quantize(source: Path, into: Path) -> None:
    """Write `source`, a GGUF file with 16 or 32 bits, as q4_k_m. Raises UserError."""
    program = shutil.which("llama-quantize")
    if program is None:
        quantize_with_ggml(library(), source, into)
        return
    command = [program, str(source), str(into), "Q4_K_M"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise UserError(f"llama-quantize failed: {last[0]}")


def quantize_with_ggml(functions: Any, source: Path, into: Path) -> None:
    """`quantize` with the row quantizer of ggml."""
    import gguf

    reader: Any = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    writer = gguf.GGUFWriter(into, architecture)
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=inner)
    writer.add_file_type(FILE_TYPE)
    experts = reader.get_field(f"{architecture}.expert_count")
    names = [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        # gguf gives shapes from the inside out, and data from the outside in
        kind = type_of(tensor.name, [int(n) for n in tensor.shape], names, experts.contents() if experts else 0)
        if kind:
            values = rows(functions, tensor, gguf.GGMLQuantizationType[kind])
            writer.add_tensor(tensor.name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rows(functions: Any, tensor: Any, kind: Any) -> np.ndarray:
    """A tensor's rows in a quantized type, uint8 [..., bytes of a row]."""
    import gguf

    plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    plain = np.ascontiguousarray(plain, dtype=np.float32)
    columns, (block, size) = plain.shape[-1], gguf.GGML_QUANT_SIZES[kind]
    count = plain.size // columns
    result = np.empty((*plain.shape[:-1], columns // block * size), dtype=np.uint8)
    written = functions.ggml_quantize_chunk(int(kind), plain.ctypes.data, result.ctypes.data, 0, count, columns, None)
    assert written == result.nbytes
    return result


def type_of(name: str, shape: list[int], names: list[str], experts: int) -> str:
    """The type of a tensor in q4_k_m, as llama.cpp chooses it. '': it stays as it is.

    Args:
        name: its name in GGUF.
        shape: its sizes, columns first.
        names: all tensors.
        experts: experts of a layer, 0 for none.
    """
    if len(shape) < 2 or not name.endswith("weight") or any(part in name for part in NEVER):
        return ""
    kind = "Q4_K"
    layer = int(match[1]) if (match := re.match(r"blk\.(\d+)\.", name)) else 0
    layers = 1 + max((int(m[1]) for m in (re.match(r"blk\.(\d+)\.", other) for other in names) if m), default=0)
    if name == "output.weight" or (name == "token_embd.weight" and "output.weight" not in names):
        kind = "Q6_K"
    elif ".attn_v." in name or ".ffn_down" in name:
        kind = "Q6_K" if more_bits(layer, layers) else "Q4_K"
    elif ".attn_qkv." in name:
        kind = "Q5_K"
    if experts == EXPERTS_OF_MIXTRAL and (".attn_v." in name or ".attn_k." in name):
        kind = "Q8_0"
    elif experts == EXPERTS_OF_MIXTRAL and ".attn_output." in name:
        kind = "Q5_K"
    if kind != "Q8_0" and shape[0] % 256:
        kind = FALLBACK[kind]
    return kind if shape[0] % 32 == 0 else ""


def more_bits(layer: int, layers: int) -> bool:
    """Whether q4_k_m gives the sensitive tensors of a layer 6 bits: the outer quarter, and a third of the others."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
