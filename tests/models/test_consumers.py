"""What consumers demand is what their sources say."""

from __future__ import annotations

import ast
import inspect
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, quantize_4bit
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import REGISTRY, anatomy_of
from apt_ds.models.blocks import Anatomy, Sizes
from apt_ds.models.consumers import (
    DEMANDS,
    VLLM_ATTENTION,
    VLLM_CPU_HEADS,
    VLLM_GPU_HEADS,
    excluded,
    llama_cpp_problems,
    vllm_problems,
)
from apt_ds.models.export.configs import written
from apt_ds.models.tensor_parallel import VOCABULARY
from tests.support import tiny, tiny_families
from tests.support.published import published_config

SOURCE = os.environ.get("APT_DS_VLLM_SOURCE", "")
needs_source = pytest.mark.skipif(not SOURCE, reason="APT_DS_VLLM_SOURCE names no folder with the package vllm")


def smollm2() -> Anatomy:
    config = tiny.config(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64
    )
    return anatomy_of(config)


def test_a_size_that_fits_nobody_names_everybody() -> None:
    table = smollm2()
    assert excluded(table, table) == []
    assert excluded(table, table.with_sizes(Sizes((3, 1408) * 2, 576))) == []
    (line,) = excluded(table, table.with_sizes(Sizes((3, 912) * 2, 576)))
    assert line == (
        "neurons 912: not a multiple of 32 (NF4 on a CPU (bitsandbytes)), 64 (fast NF4 kernels of a GPU "
        "(bitsandbytes)), 128 (block FP8 (vLLM))"
    )
    lines = excluded(table, table.with_sizes(Sizes((3, 1408, 2, 1288), 568)))
    assert [line.partition(":")[0] for line in lines] == ["neurons 1288", "hidden 568"]
    assert "16 (FP8 kernels)" in lines[0]


def test_what_the_base_does_not_fit_is_no_matter_of_the_cut() -> None:
    """A hidden size of 576 is no multiple of 128, and 2 key/value heads of 64 are."""
    table = smollm2()
    lines = excluded(table, table.with_sizes(Sizes((2, 1536) * 2, 544)))
    assert lines == ["hidden 544: not a multiple of 64 (fast NF4 kernels of a GPU (bitsandbytes))"]


def test_each_gpu_of_a_split_model_has_its_part() -> None:
    table = smollm2()
    smaller = table.with_sizes(Sizes((3, 1280) * 2, 576))
    assert excluded(table, smaller) == excluded(table, smaller, 2) == []
    (line,) = excluded(table, smaller, 4)
    assert line == "neurons 1280: not a multiple of 128 on each of 4 GPUs (block FP8 (vLLM))"


def form(config: PretrainedConfig, *sizes: int) -> PretrainedConfig:
    """The configuration of a model with uniform sizes: head blocks, neurons, hidden dimensions."""
    anatomy = anatomy_of(config)
    layers = len(anatomy.sites) // 2
    smaller = anatomy.with_sizes(Sizes(sizes[:2] * layers, sizes[2]))
    return written(nn.Module(), config, smaller, LANGUAGE_MODEL).config


def test_written_configurations_load_in_vllm() -> None:
    """A Qwen2 too, whose heads were cut. One with sliding windows does not."""
    qwen = published_config("qwen2.5-7b")
    assert vllm_problems(form(qwen, 3, 18_944, 3584)) == []
    assert vllm_problems(form(qwen, 4, 12_800, 3584), 4) == []
    assert vllm_problems(form(qwen, 3, 12_801, 3584), 2) == [
        "vLLM: 21 query and 3 key/value heads do not divide between 2 GPUs",
        "vLLM: 12801 neurons do not divide between 2 GPUs",
    ]
    windows = tiny_families.config("qwen2-window")
    assert len(vllm_problems(form(windows, 3, 48, 32))) == 2
    assert vllm_problems(published_config("qwen2.5-7b"), 3)[-1].startswith("vLLM: the padded vocabulary")


def test_sizes_by_layer_are_named() -> None:
    config = tiny_families.config("llama3")
    anatomy = anatomy_of(config).with_sizes(Sizes((4, 48, 3, 48), 32))
    by_layer = written(nn.Module(), config, anatomy, LANGUAGE_MODEL).config
    assert "sizes by layer" in vllm_problems(by_layer)[0]


def test_nf4_on_a_cpu_takes_multiples_of_32() -> None:
    """The packing of bitsandbytes refuses 912 rows."""
    unit = next(demand.unit for demand in DEMANDS if "CPU" in demand.consumer)
    assert unit == inspect.signature(_convert_weight_packed_for_cpu).parameters["block_n"].default
    for rows in (896, 912):
        packed, state = quantize_4bit(torch.randn(rows, 64), quant_type="nf4", blocksize=64)
        if rows % unit == 0:
            _convert_weight_packed_for_cpu(packed, state)
            continue
        with pytest.raises(AssertionError, match="N must be divisible"):
            _convert_weight_packed_for_cpu(packed, state)


@pytest.mark.parametrize("extra", [0, 8])
def test_fp8_products_of_a_gpu_take_multiples_of_16(extra: int) -> None:
    """Torch checks the sizes of tensors without data too."""
    unit = min(demand.unit for demand in DEMANDS)
    with FakeTensorMode():
        a, b = (torch.empty(n, 3 * unit + extra, device="cuda", dtype=torch.float8_e4m3fn) for n in (16, 32))
        one = torch.empty((), device="cuda")
        if not extra:
            assert torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16).shape == (16, 32)
            return
        with pytest.raises(RuntimeError, match="divisible by 16"):
            torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)


# The rules against the source of vLLM


@cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((Path(SOURCE) / "vllm" / file).read_text(encoding="utf8"))


def reads_head_dim(tree: ast.Module) -> bool:
    """Whether a file reads the field of a configuration."""
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Attribute) else ""
        if text == "config.head_dim" or text.startswith("getattr(config, 'head_dim'"):
            return True
    return False


def assertions(tree: ast.Module) -> set[str]:
    return {ast.unparse(node.test) for node in ast.walk(tree) if isinstance(node, ast.Assert)}


@needs_source
@pytest.mark.parametrize("name", VLLM_ATTENTION)
def test_vllm_reads_head_dim_where_the_table_says_so(name: str) -> None:
    file, reads = VLLM_ATTENTION[name]
    tree = tree_of(f"model_executor/models/{file}.py")
    assert reads_head_dim(tree) == reads
    # every GPU gets as many query heads, and key/value heads divide or are copied
    assert {
        "self.total_num_heads % tp_size == 0",
        "self.total_num_kv_heads % tp_size == 0",
        "tp_size % self.total_num_kv_heads == 0",
    } <= assertions(tree)


@needs_source
def test_vllm_runs_every_other_family_with_the_code_of_transformers() -> None:
    registry = tree_of("model_executor/models/registry.py")
    files = {
        key.value: ast.literal_eval(value)[0]
        for node in ast.walk(registry)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple) and isinstance(key.value, str)
    }
    decoders = {spec.stock_classes.get(LANGUAGE_MODEL) for spec in REGISTRY.values()} - {None}
    assert VLLM_ATTENTION.keys() <= decoders
    for name in decoders - VLLM_ATTENTION.keys():
        assert files.get(name, "transformers") == "transformers", name
    # subclasses of LLaMA, whose attention is in its file
    for name in ("MistralForCausalLM", "Phi3ForCausalLM"):
        bases = [
            ast.unparse(base)
            for node in ast.walk(tree_of(f"model_executor/models/{files[name]}.py"))
            if isinstance(node, ast.ClassDef) and node.name == name
            for base in node.bases
        ]
        assert "LlamaForCausalLM" in bases


@needs_source
def test_vllm_pads_the_vocabulary_and_divides_neurons() -> None:
    padding = tree_of("model_executor/layers/vocab_parallel_embedding.py")
    values = {ast.unparse(node) for node in ast.walk(padding) if isinstance(node, ast.Assign)}
    assert f"DEFAULT_VOCAB_PADDING_SIZE = {VOCABULARY}" in values
    assert "self.num_embeddings_per_partition = divide(self.num_embeddings_padded, self.tp_size)" in values
    linear = {ast.unparse(node) for node in ast.walk(tree_of("model_executor/layers/linear.py"))}
    assert "divide(output_size, self.tp_size)" in linear and "divide(input_size, self.tp_size)" in linear


@needs_source
def test_vllm_demands_head_sizes_and_blocks() -> None:
    attention = ast.unparse(tree_of("v1/attention/backends/cpu_attn.py"))
    assert f"return {list(VLLM_CPU_HEADS)}" in attention
    assert f"head_size % {VLLM_GPU_HEADS} != 0" in ast.unparse(tree_of("v1/attention/backends/flash_attn.py"))
    blocks = ast.unparse(tree_of("model_executor/layers/quantization/utils/fp8_utils.py"))
    assert "output_partition_size % block_n != 0" in blocks


@needs_source
def test_vllm_has_no_window_in_some_layers_of_a_qwen2() -> None:
    assert "config.max_window_layers == config.num_hidden_layers" in assertions(
        tree_of("model_executor/models/qwen2.py")
    )


def test_llama_cpp_has_no_window_for_some_classes_and_one_set_of_longrope_factors() -> None:
    sizes = {"max_position_embeddings": 512, "sliding_window": 6}
    (line,) = llama_cpp_problems({"architectures": ["Phi3ForCausalLM"], **sizes}, 7)
    assert line == "llama.cpp: Phi3ForCausalLM has no sliding window, so that answers are the model's up to 6 tokens"
    assert llama_cpp_problems({"architectures": ["Phi3ForCausalLM"], **sizes}, 6) == []
    assert llama_cpp_problems({"architectures": ["Gemma3ForCausalLM"], **sizes}, 7) == []
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 256}
    (line,) = llama_cpp_problems({"architectures": ["Phi3ForCausalLM"], "rope_parameters": rope}, 257)
    assert "factors of longrope for at most 256 tokens" in line
