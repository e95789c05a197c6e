"""Prompts, masks over them, and truncation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import Example, parse_record
from apt_ds.data.instructions import build_dataset, dump_example, encode, load_example
from apt_ds.data.prompts import prompt_ids, render_prompt
from apt_ds.data.tokenized import IGNORED, Row
from apt_ds.data.tokenizer_identity import tokenizer_identity
from apt_ds.data.turns import Unused
from tests.support import tiny

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# writes earlier answers shorter than the last one, as templates of thinking models do
FORGETFUL = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{% if m['role'] == 'assistant' and not loop.last %}(said something)"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WITHOUT_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
# its generation prompt is not what stands before an answer
CROOKED = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)

CHAT = Example(
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a color."},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Another?"},
        {"role": "assistant", "content": "\n\nBlue it is."},
    )
)
ADD = Example.from_instruction("Add the numbers.", "1 and 2", "The sum is 3.")
GREET = Example.from_instruction("Greet me.", "", "Hello there.")


def tokenizer(template: str | None = None, bos: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few lines, so that text merges and every text comes back."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    lines = [
        "Response:\n\nThe sum is",
        "### Response:The",
        "assistant\n\nBlue",
        "Hello there.",
        "Name a color.",
    ] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special_tokens = ["<|im_end|>", "<|im_start|>", "<s>"]
    inner.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=400, special_tokens=special_tokens, initial_alphabet=alphabet)
    )
    if bos:
        inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 2)])
    names = {"eos_token": "<|im_end|>", "bos_token": "<s>"} | special
    word_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        **names,
    )
    word_tokenizer.chat_template = template
    return word_tokenizer


def parts(row: Row, tok: PreTrainedTokenizerFast) -> list[tuple[str, bool]]:
    """The row's text, cut where training starts or stops."""
    assert len(row["input_ids"]) == len(row["labels"])
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        trained = label != IGNORED
        assert label in (token, IGNORED)
        if not runs or runs[-1][1] != trained:
            runs.append(([], trained))
        runs[-1][0].append(token)
    return [(tok.decode(ids), trained) for ids, trained in runs]


def test_the_alpaca_prompt_has_a_section_for_an_input_only_where_there_is_one() -> None:
    tok = tokenizer()
    with_input, without = render_prompt(ADD, tok), render_prompt(GREET, tok)
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd the numbers.\n\n### Input:\n1 and 2\n\n### Response:"
    )
    assert without == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nGreet me.\n\n### Response:"
    )
    assert render_prompt("Greet me.", tok) == without
    assert parts(encode(ADD, tok, 999), tok) == [(with_input, False), ("The sum is 3.<|im_end|>", True)]


def test_a_conversation_without_a_template_repeats_the_sections() -> None:
    tok = tokenizer()
    first = "Be brief.\n\n### Instruction:\nName a color.\n\n### Response:"
    second = "\n\n### Instruction:\nAnother?\n\n### Response:"
    expected = [(first, False), ("Red.<|im_end|>", True), (second, False), ("\n\nBlue it is.<|im_end|>", True)]
    assert parts(encode(CHAT, tok, 999), tok) == expected
    single = Example(GREET.messages)
    assert encode(single, tok, 999) == encode(GREET, tok, 999)


def test_template_trains_all_answers_and_their_ends() -> None:
    tok = tokenizer(TEMPLATE)
    first = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a color.<|im_end|>\n<|im_start|>assistant\n"
    )
    second = "\n<|im_start|>user\nAnother?<|im_end|>\n<|im_start|>assistant\n"
    expected = [(first, False), ("Red.<|im_end|>", True), (second, False), ("\n\nBlue it is.<|im_end|>", True)]
    assert parts(encode(CHAT, tok, 999), tok) == expected
    assert render_prompt(CHAT, tok) == first + "Red.<|im_end|>" + second
    assert render_prompt("Hi", tok) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("output", ["The sum", "\n\nThe sum is", " x", "\n"])
def test_no_token_spans_the_end_of_the_prompt(template: str | None, output: str) -> None:
    tok = tokenizer(template)
    example = Example.from_instruction("Add.", "", output)
    prompt = prompt_ids(example, tok)
    row = encode(example, tok, 999)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert tok.decode(row["labels"][len(prompt) :]) == output + "<|im_end|>"


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_the_answer_is_tokenized_as_it_is_generated_where_text_would_merge(template: str | None) -> None:
    tok = tokenizer(template)
    example = Example.from_instruction("Add.", "", "\n\nThe sum is")
    prompt, answer = prompt_ids(example, tok), "\n\nThe sum is<|im_end|>"
    merged = tok(render_prompt(example, tok) + answer, add_special_tokens=False)["input_ids"]
    assert merged[: len(prompt)] != prompt  # or this test would show nothing
    assert encode(example, tok, 999)["input_ids"] == prompt + tok(answer, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template", [None, TEMPLATE, FORGETFUL, WITHOUT_END, CROOKED])
@pytest.mark.parametrize("first", ["Red.", "\n\nThe sum is", "\n\nBlue"])
def test_a_later_prompt_has_the_ids_of_training_too(template: str | None, first: str) -> None:
    tok = tokenizer(template)
    asked = [{"role": "user", "content": text} for text in ("Name a color.", "Another?")]
    answers = [{"role": "assistant", "content": text} for text in (first, "\n\nBlue it is.")]
    example = Example((asked[0], answers[0], asked[1], answers[1]))
    prompt, row = prompt_ids(example, tok), encode(example, tok, 999)
    assert row["input_ids"][: len(prompt)] == prompt
    assert tok.decode(prompt) == render_prompt(example, tok)
    assert tok.decode(row["labels"][len(prompt) :]) == "\n\nBlue it is.<|im_end|>"


def test_without_a_template_the_answer_and_its_end_are_trained() -> None:
    tok = tiny.tokenizer()
    example = Example.from_instruction("the cat sees", "", "a big dog")
    prompt, row = prompt_ids(example, tok), encode(example, tok, 999)
    trained = [label for label in row["labels"] if label != IGNORED]
    assert tok.convert_ids_to_tokens(trained) == ["a", "big", "dog", "</s>"]
    assert row["input_ids"] == prompt + trained and prompt == prompt_ids("the cat sees", tok)


def test_an_answer_that_the_template_rewrites_later_is_not_trained() -> None:
    tok = tokenizer(FORGETFUL)
    before = "system: Be brief.<|im_end|>\nuser: Name a color.<|im_end|>\nassistant: (said something)<|im_end|>\n"
    expected = [(before + "user: Another?<|im_end|>\nassistant: ", False), ("\n\nBlue it is.<|im_end|>", True)]
    assert parts(encode(CHAT, tok, 999), tok) == expected


def test_templates_without_an_end_or_with_another_prompt_still_learn_to_stop() -> None:
    tok = tokenizer(WITHOUT_END)
    expected = [("user: Greet me.\nassistant: ", False), ("Hello there.<|im_end|>", True)]
    assert parts(encode(GREET, tok, 999), tok) == expected
    tok = tokenizer(CROOKED)
    expected = [("[user] Greet me.<|im_end|>>", False), ("Hello there.<|im_end|>", True)]
    assert parts(encode(GREET, tok, 999), tok) == expected


def test_a_template_that_refuses_is_reported() -> None:
    with pytest.raises(UserError, match=r"refuses a conversation of system, user.*no system role"):
        encode(CHAT, tokenizer(STRICT), 999)


def test_the_beginning_token_comes_once() -> None:
    tok = tokenizer(bos=True)
    row = encode(GREET, tok, 999)
    assert row["input_ids"].count(2) == 1 and row["input_ids"][0] == 2 and row["labels"][0] == IGNORED
    assert prompt_ids(GREET, tok) == tok(render_prompt(GREET, tok))["input_ids"]
    assert encode(GREET, tokenizer("<s>" + TEMPLATE, bos=True), 999)["input_ids"].count(2) == 1
    assert encode(GREET, tokenizer(), 999)["input_ids"].count(2) == 0


def test_what_truncation_leaves_nothing_of_is_dropped_and_counted() -> None:
    tok = tokenizer(TEMPLATE)
    length = len(encode(GREET, tok, 999)["input_ids"])
    long = Example.from_instruction("Greet me. " * 50, "", "Hello there.")
    data = build_dataset([GREET, long, GREET], tok, length - 1)
    assert len(data) == 2 and data.dropped == 1
    row = data[0]
    assert len(row["input_ids"]) == len(row["labels"]) == length - 1
    assert row["input_ids"] == encode(GREET, tok, 999)["input_ids"][:-1]
    assert set(encode(long, tok, 40)["labels"]) == {IGNORED}
    shortest = len(prompt_ids(GREET, tok))
    with pytest.raises(UserError, match=f"max_seq_length 8 cuts off every answer .* takes {shortest} tokens"):
        build_dataset([GREET, long], tok, 8)


def test_an_answer_counts_from_its_first_token_on() -> None:
    tok = tokenizer(TEMPLATE)
    length = len(prompt_ids(GREET, tok))
    with pytest.raises(UserError, match=f"max_seq_length {length} cuts off every answer") as caught:
        build_dataset([GREET], tok, length)
    assert "\n" not in str(caught.value)
    data = build_dataset([GREET], tok, length + 1)
    assert data.dropped == 0 and sum(label != IGNORED for label in data[0]["labels"]) == 1


def test_a_label_in_first_place_counts_for_nothing() -> None:
    only_answers = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>{% endfor %}"
    tok = tokenizer(only_answers)
    assert encode(GREET, tok, 1)["labels"] != [IGNORED]
    with pytest.raises(UserError, match="max_seq_length 1 cuts off every answer"):
        build_dataset([GREET], tok, 1)


def test_fingerprint_follows_the_content() -> None:
    tok = tokenizer(TEMPLATE)
    same, again = (build_dataset([ADD, GREET], tok, 99).fingerprint for _ in range(2))
    assert same == again and len(same) == 64
    assert same != build_dataset([GREET, ADD], tok, 99).fingerprint


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Add 1 and 2.", "output": "3"},
        {"instruction": "Add.", "output": "3", "history": [["Hello", "Hi"]]},
        {"instruction": "Add.", "output": "3", "system": "Be brief."},
        {"instruction": "Add.", "output": "3", "finish_reason": "length"},
        {"instruction": "Add.", "output": "3", "tools": [{"type": "function", "function": {"name": "add"}}]},
        {"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}]},
    ],
    ids=["record", "no-input", "history", "system", "unfinished", "tools", "chat"],
)
def test_an_example_is_read_back_as_it_was_written(record: dict[str, Any]) -> None:
    example = parse_record(record, "a.json, record 7", Unused())
    written, where = dump_example(example)
    again = load_example(json.loads(json.dumps(written)), where)
    assert again == example and again.where == example.where == "a.json, record 7"
    # three texts say everything of a plain record
    assert (len(written) == 3) is (set(record) <= {"instruction", "input", "output"})


def test_the_identity_of_a_tokenizer_ignores_what_calls_change() -> None:
    tokenizer = tiny.tokenizer()
    before = tokenizer_identity(tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert "max_length" in tokenizer.backend_tokenizer.to_str()
    assert tokenizer_identity(tokenizer) == before
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_identity(tokenizer) != before
