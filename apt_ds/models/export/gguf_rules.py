"""What llama.cpp can hold: how a model folder is written as GGUF, or the one line that says why it cannot be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from apt_ds.config.errors import UserError
from apt_ds.models.export.gguf_folder import check_values, read_config
from apt_ds.models.model_folder import check_weights

OUTTYPES = ("f16", "bf16", "f32", "q8_0", "q4_k_m")
BLOCK = {"q8_0": 32, "q4_k_m": 32}  # columns that share a scale; k-quants fall back from 256 to this
# families whose layers are LLaMA's. llama.cpp has an architecture with sizes by layer for them
LAYERED = {
    "LlamaForCausalLM": "deci",
    "MistralForCausalLM": "deci",
    "MinistralForCausalLM": "deci",
    "Qwen2ForCausalLM": "deci",
    "GraniteForCausalLM": "deci",
    "Phi3ForCausalLM": "deci",
    "Qwen3ForCausalLM": "openelm",
}
# families whose projections llama.cpp expects to be as wide as the stream. The layered form takes all but the last
SQUARE = ("GraniteForCausalLM", "Qwen2ForCausalLM", "Phi3ForCausalLM", "Olmo2ForCausalLM")
# families for which llama.cpp did not give the answers of transformers when they were compared
DIFFERENT = ("Qwen3MoeForCausalLM", "OlmoeForCausalLM")
# layers of the models whose attention llama.cpp scales by hidden size / heads, by family
LARGEST_GEMMA = {"Gemma2ForCausalLM": 46, "Gemma3ForCausalLM": 62}
# classes that the converter knows under another name
CONVERTED_AS = {"MinistralForCausalLM": "LlamaForCausalLM"}
ROPE_TYPES = ("default", "linear", "yarn", "llama3")
ADVICE = "Write the run with --structure uniform"


@dataclass(frozen=True)
class Plan:
    """How a folder is converted.

    Attributes:
        source: the class of transformers under which the converter knows the family.
        layout: architecture of llama.cpp with sizes by layer: deci or openelm. '': the family's own.
        groups, neurons: key/value heads and neurons of each layer, for `layout`.
        queries_per_group: query heads of a key/value head.
        head_dim, hidden: sizes of a head and of the stream.
        tied: whether the embeddings are the LM head too.
        rope_type: the type of rotary positions.
        scales: factors that are multiplied into weights, by the name of the module.
        context: tokens for which llama.cpp gives the answers of the model. 0: as many as the model takes.
    """

    source: str
    layout: str = ""
    groups: list[int] = field(default_factory=list)
    neurons: list[int] = field(default_factory=list)
    queries_per_group: int = 1
    head_dim: int = 0
    hidden: int = 0
    tied: bool = False
    rope_type: str = "default"
    scales: dict[str, float] = field(default_factory=dict)
    context: int = 0


def plan_of(folder: Path, outtype: str) -> Plan:
    """How a folder is converted.

    Raises:
        UserError: llama.cpp has no place for the model.
    """
    config = read_config(folder)
    name = str(config["architectures"][0])
    stock = name.removeprefix("Apt")
    if config.get("quantization_config"):
        raise UserError(f"{folder} has quantized weights. Convert the folder with 16-bit weights")
    if not stock.endswith("ForCausalLM"):
        raise UserError(f"llama.cpp has no place for {name}: GGUF files are written for decoders without a task head")
    if stock in DIFFERENT:
        raise UserError(f"{name} is not written as GGUF: llama.cpp does not give the answers of the model")
    check_values(folder, config, own=stock in LAYERED or stock in LARGEST_GEMMA)
    adaptive = bool(config.get("layer_intermediate_sizes"))
    if adaptive and config.get("layer_experts"):
        raise UserError(f"llama.cpp has no architecture with experts by layer for {name}. {ADVICE}")
    if adaptive and stock not in LAYERED:
        raise UserError(f"llama.cpp has no architecture with sizes by layer for {name}. {ADVICE}")
    check_blocks(folder, outtype)
    check_patterns(config, stock)
    context = window_of(config, stock)
    wide = int(config["num_attention_heads"]) * head_dim_of(config)
    if adaptive or (stock in SQUARE and wide != config["hidden_size"]):
        if stock not in LAYERED:
            raise UserError(
                f"llama.cpp expects the heads of {name} to be as wide as the stream, but {wide} is not "
                f"{config['hidden_size']}. Prune heads and hidden in proportion, or neurons only"
            )
        return layered(config, stock, context)
    return Plan(CONVERTED_AS.get(stock, stock), scales=gemma_scales(config, stock), context=context)


def check_patterns(config: dict[str, Any], stock: str) -> None:
    """Refuse a model whose layers differ in another order than llama.cpp assumes."""
    count, types = int(config["num_hidden_layers"]), config.get("layer_types")
    period = {"Gemma2ForCausalLM": 2, "Gemma3ForCausalLM": 6}.get(stock)
    wrong = False
    if period and types:
        wrong = [kind == "full_attention" for kind in types] != [(i + 1) % period == 0 for i in range(count)]
    if stock == "SmolLM3ForCausalLM" and config.get("no_rope_layers"):
        wrong = [bool(rope) for rope in config["no_rope_layers"]] != [bool((i + 1) % 4) for i in range(count)]
    if wrong:
        raise UserError(f"llama.cpp assumes another order of attention layers for {stock} than config.json has")
    if stock == "Gemma2ForCausalLM" and not config.get("tie_word_embeddings", True):
        raise UserError("llama.cpp ties the embeddings of Gemma 2 to the LM head, but this model has a head of its own")


def gemma_scales(config: dict[str, Any], stock: str) -> dict[str, float]:
    """The factor of queries where llama.cpp derives the scale of attention from sizes. {}: the scales agree."""
    if stock not in LARGEST_GEMMA or not config.get("query_pre_attn_scalar"):
        return {}
    largest = config["num_hidden_layers"] == LARGEST_GEMMA[stock]
    assumed = config["hidden_size"] // config["num_attention_heads"] if largest else head_dim_of(config)
    factor = math.sqrt(assumed / config["query_pre_attn_scalar"])
    return {} if factor == 1.0 else {"q_norm" if stock == "Gemma3ForCausalLM" else "q_proj": factor}


def head_dim_of(config: dict[str, Any]) -> int:
    """The size of a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def window_of(config: dict[str, Any], stock: str) -> int:
    """Tokens up to which llama.cpp gives the answers of the model. 0: no limit.

    It ignores the attention window of the families in `LAYERED`. It chooses the factors of longrope by the context
    that it is started with, not by the length of the text.
    """
    longest, window = int(config.get("max_position_embeddings", 0)), config.get("sliding_window") or 0
    if (config.get("rope_parameters") or {}).get("rope_type") == "longrope":
        short = config["rope_parameters"].get("original_max_position_embeddings")
        return int(short or config.get("original_max_position_embeddings") or 0)
    if stock not in LAYERED or (stock == "Qwen2ForCausalLM" and not config.get("use_sliding_window")):
        return 0
    return int(window) if 0 < window < longest else 0


def layered(config: dict[str, Any], stock: str, context: int) -> Plan:
    """The plan of a model with sizes by layer."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", "default")
    layout, tied = LAYERED[stock], bool(config.get("tie_word_embeddings"))
    what = f"llama.cpp's architecture with sizes by layer ({layout.upper()})"
    if rope_type not in ROPE_TYPES or (layout == "openelm" and rope_type != "default"):
        raise UserError(f"{what} has no rotary positions of type {rope_type!r}. {ADVICE}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{what} rotates whole heads only. {ADVICE}")
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{what} has no activation {config['hidden_act']!r}. {ADVICE}")
    if layout == "openelm" and (not tied or config.get("attention_bias")):
        raise UserError(f"{what} needs tied embeddings and no attention biases. {ADVICE}")
    count, groups = int(config["num_hidden_layers"]), int(config["num_key_value_heads"])
    head_dim = head_dim_of(config)
    return Plan(
        CONVERTED_AS.get(stock, stock),
        layout,
        list(config.get("layer_key_value_heads") or [groups] * count),
        list(config.get("layer_intermediate_sizes") or [config["intermediate_size"]] * count),
        int(config["num_attention_heads"]) // groups,
        head_dim,
        int(config["hidden_size"]),
        tied,
        rope_type,
        granite_scales(config, head_dim) if stock == "GraniteForCausalLM" else {},
        context,
    )


def granite_scales(config: dict[str, Any], head_dim: int) -> dict[str, float]:
    """Granite's constants as factors of weights, by the name of the module."""
    residual = float(config["residual_multiplier"])
    return {
        "embed_tokens": float(config["embedding_multiplier"]),
        "q_proj": float(config["attention_multiplier"]) * math.sqrt(head_dim),
        "o_proj": residual,
        "down_proj": residual,
        "lm_head": 1 / float(config["logits_scaling"]),
    }


def columns_of(folder: Path) -> dict[str, int]:
    """Columns of the matrices in the layers of a folder, by name. Raises UserError."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no *.safetensors files")
    check_weights(str(folder), str(folder))
    columns = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
                shape = tensors.get_slice(name).get_shape()
                if len(shape) == 2 and ".layers." in name:
                    columns[name] = shape[1]
    return columns


def check_blocks(folder: Path, outtype: str) -> None:
    """Refuse to quantize a model without any matrix that has whole blocks. Others keep more bits matrix by matrix."""
    columns = columns_of(folder)
    if outtype not in BLOCK or any(count % BLOCK[outtype] == 0 for count in columns.values()):
        return
    sizes = ", ".join(str(count) for count in sorted(set(columns.values()))[:4])
    raise UserError(
        f"--outtype {outtype} needs rows of a multiple of {BLOCK[outtype]} weights, but no matrix has them "
        f"(rows of {sizes}). Use --outtype f16, or prune with --align {BLOCK[outtype]}"
    )
