"""The fields of a configuration that decide what a model computes, and the first one in which two differ."""

from __future__ import annotations

import json
from typing import Any

from transformers import PretrainedConfig

# names, storage, what loading or generation alone look at, and how new weights are drawn
INCIDENTAL = {
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map"),
    *("torch_dtype", "dtype", "use_cache", "tokenizer_class", "return_dict", "output_attentions"),
    *("output_hidden_states", "pretraining_tp", "initializer_range", "initializer_factor", "task_specific_params"),
    *(
        "_attn_implementation",
        "attn_implementation",
        "_experts_implementation",
        "torchscript",
        "gradient_checkpointing",
    ),
    *("use_bfloat16", "finetuning_task", "chunk_size_feed_forward"),
    # the run's own tokens and classes, which fingerprints of the data cover
    *("bos_token_id", "eos_token_id", "id2label", "label2id", "problem_type"),
}


def decisive(config: PretrainedConfig) -> dict[str, Any]:
    """The fields that decide what the model computes, as JSON has them."""
    fields = {name: value for name, value in config.to_dict().items() if name not in INCIDENTAL}
    return json.loads(json.dumps(fields, sort_keys=True, default=str))


def first_difference(then: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """(field, earlier value, present value) of the first field that differs, None where none does.

    A field that only one configuration has comes from another version of transformers. It is not compared.
    """
    for name in sorted(then.keys() & now.keys()):
        if then[name] == now[name]:
            continue
        if not (isinstance(then[name], dict) and isinstance(now[name], dict)):
            return name, then[name], now[name]
        for key in sorted(then[name].keys() | now[name].keys()):
            if then[name].get(key) != now[name].get(key):
                return f"{name}.{key}", then[name].get(key), now[name].get(key)
    return None
