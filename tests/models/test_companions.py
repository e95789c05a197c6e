"""The small files of a written folder: nothing of the machine that wrote them, and readable by all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from apt_ds.config.errors import UserError
from apt_ds.models import builtin_models
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.base import find_base
from apt_ds.models.export import companions, write
from tests.support import tiny


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf8"))


def written(model: PreTrainedModel, folder: Path, tokenizer: Any = None) -> Path:
    tokenizer = tokenizer or tiny.tokenizer()
    write.export(model, anatomy_of(model.config), model.config, model.generation_config, tokenizer, folder)
    return folder


def test_a_tokenizer_without_a_limit_has_that_of_the_model(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    assert tokenizer.model_max_length > companions.UNLIMITED
    for limit, expected in ((tokenizer.model_max_length, 128), (64, 64), (4096, 4096)):
        tokenizer.model_max_length = limit
        companions.write_tokenizer(tokenizer, tiny.config(), tmp_path)
        assert read(tmp_path, "tokenizer_config.json")["model_max_length"] == expected
        assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == expected
    assert companions.positions(tiny.small("roberta-classes").config) == 64 - 1
    assert companions.positions(tiny.small("t5").config) is None
    tokenizer.model_max_length = 10**30
    companions.write_tokenizer(tokenizer, tiny.small("t5").config, tmp_path)
    assert "model_max_length" not in read(tmp_path, "tokenizer_config.json")


def test_extra_special_tokens_have_the_name_that_both_versions_read(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    companions.write_tokenizer(tokenizer, tiny.config(), tmp_path)
    fields = read(tmp_path, "tokenizer_config.json")
    assert fields["additional_special_tokens"] == ["<|user|>", "<|end|>"] and "extra_special_tokens" not in fields
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.extra_special_tokens == tokenizer.extra_special_tokens
    text = "the <|user|> cat<|end|>"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids, skip_special_tokens=True).split() == ["the", "cat"]


def test_nothing_says_where_the_base_model_was(tmp_path: Path) -> None:
    model = tiny.model()
    model.config._name_or_path = model.config._model_name_or_path = "/home/somebody/model.gguf"
    tokenizer = tiny.tokenizer()
    tokenizer.init_kwargs |= {"is_local": True, "local_files_only": True, "name_or_path": str(tmp_path)}
    folder = written(model, tmp_path / "model", tokenizer)
    for path in folder.glob("*.json"):
        text = path.read_text(encoding="utf8")
        assert str(tmp_path) not in text and "gguf" not in text, path
        assert not companions.LOCAL & json.loads(text).keys(), path


def test_generation_settings_stay(tmp_path: Path) -> None:
    generation = GenerationConfig(temperature=0.7, do_sample=True, eos_token_id=[2, 3], pad_token_id=0)
    companions.write_generation(generation, tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert (again.temperature, again.do_sample, again.eos_token_id, again.pad_token_id) == (0.7, True, [2, 3], 0)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_everybody_may_read_the_files(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        folder = written(tiny.model(), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.iterdir()}
    assert modes["model.safetensors"] == "0o644" and set(modes.values()) == {"0o644"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask


def test_the_quickstart_model_gets_sane_files(tmp_path: Path) -> None:
    """Its base comes from a GGUF file, and its unpacked folder has what such a file leaves."""
    try:
        base = find_base(builtin_models.SMOLLM2)
    except UserError as error:
        pytest.skip(str(error))
    companions.write_config(base.config, tmp_path)
    companions.write_tokenizer(base.tokenizer, base.config, tmp_path)
    companions.write_generation(GenerationConfig.from_pretrained(base.source), tmp_path)
    assert read(tmp_path, "tokenizer_config.json") == {
        "backend": "tokenizers",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<|endoftext|>",
    }
    config, generation = read(tmp_path, "config.json"), read(tmp_path, "generation_config.json")
    assert config["rope_theta"] == 100000.0 and config["torch_dtype"] == "bfloat16"
    assert not companions.LOCAL & (config.keys() | generation.keys())
    assert set(generation) == {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "use_cache"}
    text = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == base.tokenizer(text).input_ids
    assert (tmp_path / "chat_template.jinja").is_file()
