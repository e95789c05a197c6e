"""Tiny random models, a tokenizer and data, all made by the tests."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
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

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from tests.support import tiny_encoders

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
    model = LlamaForCausalLM(config(kind, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.15)
    return model


# the small ones: class, configuration, task
SMALL = {
    "bert-classes": (BertForSequenceClassification, BertConfig, CLASSIFICATION),
    "bert-answers": (BertForQuestionAnswering, BertConfig, ANSWERS),
    "roberta-classes": (RobertaForSequenceClassification, RobertaConfig, CLASSIFICATION),
    "roberta-answers": (RobertaForQuestionAnswering, RobertaConfig, ANSWERS),
    "t5": (T5ForConditionalGeneration, T5Config, GENERATION),
    "t5-gated": (T5ForConditionalGeneration, T5Config, GENERATION),
} | tiny_encoders.SMALL
TASKS = {"mha": LANGUAGE_MODEL, "gqa": LANGUAGE_MODEL} | {kind: task for kind, (_, _, task) in SMALL.items()}


def small(kind: str, seed: int = 0) -> PreTrainedModel:
    """An fp32 encoder or T5, far from its initial weights: two layers (T5: of each), hidden 32, 4 heads, 48 neurons."""
    torch.manual_seed(seed)
    model_class, config_class, _ = SMALL[kind]
    values: dict[str, object] = {"vocab_size": len(SPECIAL) + len(WORDS) + 200, "pad_token_id": 0, "num_heads": 4}
    if kind in tiny_encoders.VALUES:
        values |= tiny_encoders.VALUES[kind]
        del values["num_heads"]
    elif kind.startswith("t5"):
        values |= {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "dropout_rate": 0.0}
        values |= {"decoder_start_token_id": 0, "eos_token_id": 2, "relative_attention_num_buckets": 8}
        values["feed_forward_proj"] = "gated-gelu" if kind == "t5-gated" else "relu"
    else:
        values |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        values |= {"num_labels": 2, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0}
        values["attention_probs_dropout_prob"] = 0.0
        del values["num_heads"]
    model = model_class(config_class(**values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.15)
    return model


def answer(model: PreTrainedModel, batch: int = 3) -> torch.Tensor:
    """All outputs of a small model for random tokens. The second half of the last row is padding."""
    tokens = ids(batch)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    inputs["attention_mask"][-1, 6:] = 0
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids(batch, 7, seed=1)
    outputs = model(**inputs)
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits])
    return outputs.logits


def tokenizer() -> PreTrainedTokenizerFast:
    """One id per word; no chat template."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *(f"w{i}" for i in range(200))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def framing_tokenizer() -> PreTrainedTokenizerFast:
    """The same words between a first and a last special token, as encoders read them."""
    framing = tokenizer()
    framing.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    places = [(token, framing.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    framing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=places
    )
    return framing


def save_task(folder: Path, kind: str) -> list[str]:
    """Write a small model and data that it can learn to `folder`. Returns the flags of train.py that name them.

    Classes: whether a sentence says `big`. Answers: where the context says `big`. Text: the words of a colour, twice.
    """
    draw = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    small(kind).save_pretrained(folder / "model")
    (tokenizer() if kind.startswith("t5") else framing_tokenizer()).save_pretrained(folder / "model")
    others = [word for word in WORDS if word != "big"]

    def sentence(with_big: bool) -> str:
        words = [draw.choice(others) for _ in range(draw.randint(4, 9))]
        return " ".join([*words[:2], "big", *words[2:]] if with_big else words)

    for split, count in (("train", 40), ("validation", 12)):
        answers = [i % 2 == 0 for i in range(count)]
        if kind.endswith("classes"):
            lines = ["sentence\tlabel", *(f"{sentence(yes)}\t{int(yes)}" for yes in answers)]
            (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
        elif kind.endswith("answers"):
            asked = [_question(f"{split}{i}", sentence(yes), yes) for i, yes in enumerate(answers)]
            articles = {"data": [{"title": "sizes", "paragraphs": asked}]}
            (folder / f"{split}.json").write_text(json.dumps(articles), encoding="utf8")
        else:
            pairs = [{"source": f"{a} {b}", "target": f"{b} {a}"} for a, b in _colours(draw, count)]
            (folder / f"{split}.json").write_text(json.dumps(pairs), encoding="utf8")
    task = {"classes": "sst2", "answers": "squad_v2"}.get(kind.partition("-")[2], "text")
    words = ["--task", task, "--model_name_or_path", str(folder / "model"), "--data_path", str(folder)]
    return [*words, "--eval_size", "0", "--max_target_length", "6", "--doc_stride", "8", "--max_seq_length", "60"]


def _question(name: str, context: str, answered: bool) -> dict[str, object]:
    answers = [{"text": "big", "answer_start": f"{context} ".index("big ")}] if answered else []
    asked = {"id": name, "question": "the red house", "answers": answers, "is_impossible": not answered}
    return {"context": context, "qas": [asked]}


def _colours(draw: random.Random, count: int) -> list[tuple[str, str]]:
    return [(draw.choice(["red", "blue"]), draw.choice(["cat", "dog", "house", "tree"])) for _ in range(count)]


def ids(batch: int = 3, length: int = 11, seed: int = 0) -> torch.Tensor:
    """Random token ids [batch, length]."""
    return torch.randint(4, 200, (batch, length), generator=torch.Generator().manual_seed(seed))


def rows(count: int = 4, seed: int = 3) -> list[dict[str, list[int]]]:
    """At most six examples of different lengths. Their first two tokens have no label."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [9, 5, 12, 7, 8, 11][:count]
    examples = [torch.randint(4, 200, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": tokens, "labels": [-100, -100, *tokens[2:]]} for tokens in examples]


def save_model(folder: Path, kind: str = "gqa", seed: int = 0, **changes: object) -> Path:
    """A model folder as `from_pretrained` reads it."""
    model(kind, seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_blocks(folder: Path) -> Path:
    """Write `model`, with sizes that a 4-bit base accepts before and after a cut, and `data.json`."""
    save_model(folder / "model", hidden_size=128, intermediate_size=512, num_attention_heads=4)
    save_data(folder / "data.json")
    return folder


def save_data(path: Path, count: int = 48, seed: int = 0) -> Path:
    """Alpaca records of different lengths."""
    draw = random.Random(seed)

    def say(low: int, high: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))

    records = [{"instruction": say(3, 8), "input": "", "output": say(2, 9)} for _ in range(count)]
    path.write_text(json.dumps(records), encoding="utf8")
    return path
