"""What the programs that load a written model demand of its sizes. Facts of their sources, which tests compare.

vLLM facts are of version 0.33, from `vllm/model_executor/models/*.py` and `layers/`. `tensor_parallel.py` has the rules
of tensor parallelism.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from apt_ds.models.blocks import Anatomy
from apt_ds.models.export.gguf_rules import window_of
from apt_ds.models.tensor_parallel import VOCABULARY, heads_divide

# vLLM's file with the attention of each class, and whether it reads `head_dim`. Otherwise a head has hidden size /
# heads dimensions. vLLM runs a class that is not here with the code of transformers, which reads `head_dim`.
VLLM_ATTENTION = {
    "LlamaForCausalLM": ("llama", True),
    "MistralForCausalLM": ("llama", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen3ForCausalLM": ("qwen3", True),
    "Gemma2ForCausalLM": ("gemma2", True),
    "Gemma3ForCausalLM": ("gemma3", True),
    "GraniteForCausalLM": ("granite", True),
    "Phi3ForCausalLM": ("llama", True),
    "MixtralForCausalLM": ("mixtral", True),
    "Qwen3MoeForCausalLM": ("qwen3_moe", True),
    "OlmoeForCausalLM": ("olmoe", False),
}
VLLM_CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # head sizes of vLLM's attention on a CPU
VLLM_GPU_HEADS = 8  # flash attention takes multiples of it, up to 256


@dataclass(frozen=True)
class Demand:
    """A multiple that a consumer demands.

    Attributes:
        unit: the multiple.
        consumer: who demands it.
        per_gpu: the part of each GPU of a split model must be a multiple.
    """

    unit: int
    consumer: str
    per_gpu: bool = False


DEMANDS = (
    Demand(16, "FP8 kernels"),
    Demand(32, "NF4 on a CPU (bitsandbytes)"),
    Demand(64, "fast NF4 kernels of a GPU (bitsandbytes)"),
    Demand(128, "block FP8 (vLLM)", per_gpu=True),
)


def excluded(before: Anatomy, after: Anatomy, gpus: int = 1) -> list[str]:
    """One line for each kept size that consumers of the base model cannot take.

    Args:
        before: the model before any cut. What it does not fit either is no matter of the cut.
        after: the model after it.
        gpus: GPUs that will share the served model.
    """
    lines, base = [], dict(_sizes(before))
    for name, sizes in _sizes(after):
        lost: list[str] = []
        odd: set[int] = set()
        for demand in DEMANDS:
            parts = gpus if demand.per_gpu and name != "hidden" else 1
            wrong = {size for size in sizes if size % (parts * demand.unit)}
            if wrong and not any(size % (parts * demand.unit) for size in base[name]):
                lost.append(f"{demand.unit}{f' on each of {parts} GPUs' if parts > 1 else ''} ({demand.consumer})")
                odd |= wrong
        if lost:
            shown = ", ".join(str(size) for size in sorted(odd)[:3]) + (", ..." if len(odd) > 3 else "")
            lines.append(f"{name} {shown}: not a multiple of {', '.join(lost)}")
    return lines


def _sizes(anatomy: Anatomy) -> Iterator[tuple[str, set[int]]]:
    """Rows or columns of the linear layers that blocks index, over all layers, by a name. 0 is no layer."""
    experts = {mixture.neuron_site: mixture.shape(anatomy.sizes)[0] for mixture in anatomy.experts}
    queries, values, neurons = set(), set(), set()
    for number, (site, count) in enumerate(zip(anatomy.sites, anatomy.sizes.counts, strict=True)):
        if site.kind == "head":
            queries.add(count * site.unit)
            values.add(count * (site.params_per_hidden // 2 - site.unit))
        elif site.kind == "neuron":
            neurons.add(count // experts.get(number, 1))
    named = {"neurons": neurons, "query width": queries, "key/value width": values, "hidden": {anatomy.sizes.hidden}}
    for name, sizes in named.items():
        yield name, sizes - {0}


def vllm_problems(config: PretrainedConfig, gpus: int = 1) -> list[str]:
    """Why vLLM does not load a written decoder, one line each.

    Args:
        config: the written configuration.
        gpus: value of its `--tensor-parallel-size`.
    """
    name = (config.architectures or [""])[0]
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    problems = []
    if name.startswith("Apt"):
        problems.append("vLLM: sizes by layer are not supported")
    _, reads_head_dim = VLLM_ATTENTION.get(name, ("", True))
    derived = config.hidden_size // heads
    head_dim = getattr(config, "head_dim", None) or derived
    if not reads_head_dim and derived != head_dim:
        problems.append(f"vLLM: {name} takes {config.hidden_size} / {heads} as head size, not {head_dim}")
    kinds = set(getattr(config, "layer_types", None) or ())
    if name == "Qwen2ForCausalLM" and len(kinds) > 1 and config.max_window_layers != config.num_hidden_layers:
        problems.append("vLLM: Qwen2ForCausalLM has no sliding window in some layers only")
    if not heads_divide(groups, heads // groups, gpus):
        problems.append(f"vLLM: {heads} query and {groups} key/value heads do not divide between {gpus} GPUs")
    neurons = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    if neurons % gpus:
        problems.append(f"vLLM: {neurons} neurons do not divide between {gpus} GPUs")
    if -(-config.vocab_size // VOCABULARY) * VOCABULARY % gpus:
        problems.append(f"vLLM: the padded vocabulary does not divide between {gpus} GPUs")
    return problems


def llama_cpp_problems(config: dict[str, Any], tokens: int) -> list[str]:
    """Why llama.cpp answers a text otherwise than a written decoder that it loads, one line each.

    `export/gguf_rules.py` refuses the decoders that it cannot load.

    Args:
        config: the written config.json.
        tokens: length of the text and the answer.
    """
    name = str(config["architectures"][0])
    longest = window_of(config, name.removeprefix("Apt"))
    if not 0 < longest < tokens:
        return []
    if (config.get("rope_parameters") or {}).get("rope_type") == "longrope":
        return [f"llama.cpp: {name} has the factors of longrope for at most {longest} tokens"]
    return [f"llama.cpp: {name} has no sliding window, so that answers are the model's up to {longest} tokens"]
