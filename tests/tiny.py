"""Tiny random models, a tokenizer and data, all made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from apt_ds.architectures import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL

WORDS = [
    *("the", "a", "cat", "dog", "sees", "likes", "big", "small", "red", "blue", "house", "tree"),
    *("one", "two", "three", "four", "and", "or", "not", "in", "on", "under"),
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
KINDS = {"mha": 4, "gqa": 2}  # key/value heads of a model with 4 query heads


def config(kind: str = "gqa", **changes: object) -> LlamaConfig:
    """Two layers, hidden 32, 4 query heads, 48 neurons."""
    values: dict[str, object] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": KINDS[kind],
        "vocab_size": len(SPECIAL) + len(WORDS) + 200,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**(values | changes))


def model(kind: str = "gqa", seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """An fp32 model whose norms and weights are far from their initial values, so that mistakes show."""
    torch.manual_seed(seed)
    made = LlamaForCausalLM(config(kind, **changes)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.15)
    return made


# the small ones: class, configuration, task
SMALL = {
    "bert-classes": (BertForSequenceClassification, BertConfig, CLASSIFICATION),
    "bert-answers": (BertForQuestionAnswering, BertConfig, ANSWERS),
    "roberta-classes": (RobertaForSequenceClassification, RobertaConfig, CLASSIFICATION),
    "roberta-answers": (RobertaForQuestionAnswering, RobertaConfig, ANSWERS),
    "t5": (T5ForConditionalGeneration, T5Config, GENERATION),
    "t5-gated": (T5ForConditionalGeneration, T5Config, GENERATION),
}
TASKS = {"mha": LANGUAGE_MODEL, "gqa": LANGUAGE_MODEL} | {kind: task for kind, (_, _, task) in SMALL.items()}


def small(kind: str, seed: int = 0) -> PreTrainedModel:
    """An fp32 BERT, RoBERTa or T5: two layers (T5: of each), hidden 32, 4 heads, 48 neurons, far from its start."""
    torch.manual_seed(seed)
    model_class, config_class, _ = SMALL[kind]
    values: dict[str, object] = {"vocab_size": len(SPECIAL) + len(WORDS) + 200, "pad_token_id": 0, "num_heads": 4}
    if kind.startswith("t5"):
        values |= {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "dropout_rate": 0.0}
        values |= {"decoder_start_token_id": 0, "eos_token_id": 2, "relative_attention_num_buckets": 8}
        values["feed_forward_proj"] = "gated-gelu" if kind == "t5-gated" else "relu"
    else:
        values |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        values |= {"num_labels": 2, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0}
        values["attention_probs_dropout_prob"] = 0.0
        del values["num_heads"]
    made = model_class(config_class(**values)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.15)
    return made


def answer(model: PreTrainedModel, batch: int = 3) -> torch.Tensor:
    """Everything a small model says to random tokens, the second half of the last row padded away."""
    tokens = ids(batch)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    inputs["attention_mask"][-1, 6:] = 0
    if model.config.model_type == "t5":
        inputs["decoder_input_ids"] = ids(batch, 7, seed=1)
    found = model(**inputs)
    if "start_logits" in found:
        return torch.stack([found.start_logits, found.end_logits])
    return found.logits


def tokenizer() -> PreTrainedTokenizerFast:
    """One id per word; no chat template."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *(f"w{i}" for i in range(200))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def ids(batch: int = 3, length: int = 11, seed: int = 0) -> torch.Tensor:
    """Random token ids [batch, length]."""
    return torch.randint(4, 200, (batch, length), generator=torch.Generator().manual_seed(seed))


def save_model(folder: Path, kind: str = "gqa", seed: int = 0, **changes: object) -> Path:
    """A model folder as `from_pretrained` reads it."""
    model(kind, seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_data(path: Path, count: int = 48, seed: int = 0) -> Path:
    """Alpaca records of different lengths."""
    draw = random.Random(seed)

    def say(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    records = [{"instruction": say(3, 8), "input": "", "output": say(2, 9)} for _ in range(count)]
    path.write_text(json.dumps(records), encoding="utf8")
    return path
