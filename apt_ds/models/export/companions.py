"""The small files beside the weights of a written model: configuration, generation settings and tokenizer.

transformers writes them. Here they lose what concerns only the machine and the run that wrote them, and get what other
versions and programs need.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from apt_ds.models.architectures import architecture_of
from apt_ds.models.export import version_4

# fields that say where a model was read from, or are left of another format
LOCAL = {
    *("_name_or_path", "name_or_path", "_model_name_or_path", "_commit_hash", "_from_model_config"),
    *("_original_object_hash", "is_local", "local_files_only", "unk_token_id", "gguf_file", "tokenizer_file"),
    *("vocab_file", "merges_file", "special_tokens_map_file", "cache_dir", "files_loaded"),
}
UNLIMITED = 10**9  # a tokenizer that knows no limit states 1e30
MODE = 0o644  # safetensors makes files that only their owner may read


def write_config(config: PretrainedConfig, folder: Path) -> None:
    """Write config.json, for transformers 4 too.

    Raises:
        ValueError: transformers refuses the configuration.
    """
    config.save_pretrained(folder)
    _edit(folder / "config.json", lambda fields: version_4.config_fields(fields) | fields)


def write_generation(generation: GenerationConfig, folder: Path) -> None:
    """Write generation_config.json."""
    generation.save_pretrained(folder)
    unset = ("output_attentions", "output_hidden_states")
    _edit(
        folder / "generation_config.json",
        lambda fields: {name: value for name, value in fields.items() if value or name not in unset},
    )


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, folder: Path) -> None:
    """Write the tokenizer, for transformers 4 too. The length of texts is that of the model where it had no limit."""
    tokenizer.save_pretrained(folder)
    if not (folder / "tokenizer_config.json").is_file():
        return

    def complete(fields: dict[str, Any]) -> dict[str, Any]:
        if (folder / "tokenizer.json").is_file():
            fields |= version_4.tokenizer_fields(fields, tokenizer)
        if isinstance(fields.get("extra_special_tokens"), list):
            fields["additional_special_tokens"] = fields.pop("extra_special_tokens")  # both versions read this name
        if fields.get("model_max_length") is None or fields["model_max_length"] >= UNLIMITED:
            fields.pop("model_max_length", None)
            fields |= {"model_max_length": limit} if (limit := positions(config)) is not None else {}
        return fields

    _edit(folder / "tokenizer_config.json", complete)


def positions(config: PretrainedConfig) -> int | None:
    """The tokens that a model has positions for. None: it has no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else limit - architecture_of(config).position_offset(config)


def open_to_readers(folder: Path) -> None:
    """Let everybody read the files of a folder."""
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(MODE)


def _edit(path: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a JSON file without what is local, after `edit`."""
    fields = edit(json.loads(path.read_text(encoding="utf8")))
    fields = {name: value for name, value in fields.items() if name not in LOCAL}
    path.write_text(json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf8")
