"""What is written for transformers 4 changes nothing in transformers 5, and has the names that version 4 reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoTokenizer, GemmaTokenizer, LlamaTokenizer, PretrainedConfig

from apt_ds.models.export import companions, version_4
from tests.support import tiny, tiny_experts, tiny_families

CONFIGS: dict[str, Any] = {row: (lambda row=row: tiny_families.config(row)) for row in tiny_families.FAMILIES}
CONFIGS |= {kind: (lambda kind=kind: tiny.small(kind).config) for kind in tiny.SMALL}
CONFIGS |= {family: (lambda family=family: tiny_experts.model(family).config) for family in tiny_experts.FAMILIES}


def rescaled(config: PretrainedConfig) -> PretrainedConfig:
    """The same configuration with a base of positions that is no default, where it has positions to rotate."""
    rope = getattr(config, "rope_parameters", None)
    for part in (rope, *(rope or {}).values()) if rope else ():
        if isinstance(part, dict) and "rope_theta" in part:
            part["rope_theta"] = 777.0
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_version_5_reads_the_same_configuration(name: str, tmp_path: Path) -> None:
    config = rescaled(CONFIGS[name]())
    config.save_pretrained(tmp_path / "plain")
    companions.write_config(config, tmp_path / "both")
    plain, both = (AutoConfig.from_pretrained(tmp_path / which).to_dict() for which in ("plain", "both"))
    if name == "phi4":  # its check in version 4 leaves no room for all keys, which are fields of their own too
        rope = {"type": "longrope", **plain["rope_parameters"]}
        assert both["rope_parameters"] == {key: rope[key] for key in both["rope_parameters"]}
        assert both["original_max_position_embeddings"] == 8
        plain["rope_parameters"], plain["partial_rotary_factor"] = both["rope_parameters"], 0.75
    assert plain | {"_name_or_path": ""} == both | {"_name_or_path": ""}
    written = json.loads((tmp_path / "both" / "config.json").read_text(encoding="utf8"))
    assert getattr(config, "rope_parameters", None) is None or 777.0 in (
        written.get("rope_theta"),
        written.get("global_rope_theta"),
    )


def test_fields_of_scaled_positions() -> None:
    fields = version_4.config_fields(tiny_families.llama3().to_dict() | {"dtype": "bfloat16"})
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 16
    assert fields == {"torch_dtype": "bfloat16", "rope_theta": 5e5, "rope_scaling": scaling}
    phi = version_4.config_fields(tiny_families.phi4().to_dict())
    assert set(phi["rope_scaling"]) == {"type", "short_factor", "long_factor"} and phi["partial_rotary_factor"] == 0.75
    window = {"rope_parameters": {"sliding_attention": {"rope_theta": 1.0}, "full_attention": {"rope_theta": 2.0}}}
    for family, names in (("gemma3_text", ("rope_theta", "rope_local_base_freq")), ("apt_modernbert", None)):
        own = names or ("global_rope_theta", "local_rope_theta")
        assert version_4.config_fields(window | {"model_type": family}) == dict(zip(own, (2.0, 1.0), strict=True))
    assert version_4.config_fields({"model_type": "bert"}) == {}


def test_a_tokenizer_without_a_class_of_its_own_is_a_fast_one() -> None:
    fields = version_4.tokenizer_fields({"tokenizer_class": "TokenizersBackend"}, tiny.tokenizer())
    assert fields == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }


@pytest.mark.parametrize("kind", [LlamaTokenizer, GemmaTokenizer])
@pytest.mark.parametrize("begins", [True, False])
def test_switches_of_version_4_say_what_the_tokenizer_does(kind: Any, begins: bool, tmp_path: Path) -> None:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<bos>": 4, "<eos>": 5, "▁": 6, "a": 7, "▁a": 8}
    assert Tokenizer(models.BPE(vocabulary, [("▁", "a")]))
    tokenizer = kind(vocab=vocabulary, merges=[("▁", "a")], add_bos_token=begins)
    fields = version_4.tokenizer_fields({"tokenizer_class": kind.__name__}, tokenizer)
    assert (fields["add_bos_token"], fields["add_eos_token"]) == (begins, False) and "tokenizer_class" not in fields
    companions.write_tokenizer(tokenizer, tiny.config(), tmp_path)
    tiny.config().save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a").input_ids == tokenizer("a").input_ids
