"""What a folder says for transformers 4 beside what transformers 5 writes: names of fields have changed between them.

Each version reads its own names. Transformers 4 falls back to defaults where it finds none, without a warning.
"""

from __future__ import annotations

from typing import Any

# fields with the base of rotary positions in global layers, and in layers with a window
BASES = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert": ("global_rope_theta", "local_rope_theta"),
}
# families whose check of version 4 allows these keys of `rope_scaling` and no others
SCALING_KEYS = {
    "phi3": ("type", "short_factor", "long_factor"),
    "olmo2": ("type", "factor"),
}
APART = ("rope_theta", "partial_rotary_factor")  # version 4 has them beside `rope_scaling`
GLOBAL, WINDOW = "full_attention", "sliding_attention"


def config_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that version 4 reads, by those that version 5 writes into config.json."""
    family = str(config.get("model_type", "")).removeprefix("apt_")
    fields: dict[str, Any] = {}
    if "dtype" in config:
        fields["torch_dtype"] = config["dtype"]
    if "num_local_experts" in config:
        fields["num_experts"] = config["num_local_experts"]
    rope = config.get("rope_parameters")
    if not rope:
        return fields
    if GLOBAL in rope or WINDOW in rope:
        bases = dict(zip(BASES.get(family, ("rope_theta",)), (rope.get(GLOBAL), rope.get(WINDOW)), strict=False))
        fields |= {name: kind["rope_theta"] for name, kind in bases.items() if kind}
        rope = rope.get(GLOBAL) or {}
    else:
        fields |= {name: rope[name] for name in APART if rope.get(name) not in (None, 1.0)}
    scaling = _scaling(rope, SCALING_KEYS.get(family))
    return fields | ({"rope_scaling": scaling} if scaling else {})


def _scaling(rope: dict[str, Any], keys: tuple[str, ...] | None) -> dict[str, Any]:
    """`rope_scaling` of version 4. Empty for positions that are not scaled."""
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return {}
    scaling = {name: value for name, value in rope.items() if name not in APART}
    if keys is None:
        return scaling
    scaling["type"] = kind
    return {name: scaling[name] for name in keys if name in scaling}


# classes of version 4 that replace the post-processor of tokenizer.json by one of two switches
WITH_SWITCHES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer")
FAST = "PreTrainedTokenizerFast"  # reads any tokenizer.json, in both versions


def tokenizer_fields(config: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The fields of tokenizer_config.json that version 4 needs for the same tokens.

    Args:
        config: the content that version 5 writes.
        tokenizer: the tokenizer. It must have a tokenizer.json.
    """
    fields: dict[str, Any] = {"model_input_names": list(tokenizer.model_input_names)}
    name = str(config.get("tokenizer_class", FAST)).removesuffix("Fast")
    if name == "TokenizersBackend":
        fields["tokenizer_class"] = FAST
    elif name in WITH_SWITCHES:
        plain, framed = (tokenizer("a", add_special_tokens=whether)["input_ids"] for whether in (False, True))
        fields["add_bos_token"] = framed[:1] == [tokenizer.bos_token_id] != plain[:1]
        fields["add_eos_token"] = framed[-1:] == [tokenizer.eos_token_id] != plain[-1:]
    return fields
