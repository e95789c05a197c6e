"""Records of conversations whose last answer a model has written, and the rows that training makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apt_ds.data.conversations import Example, load_examples
from apt_ds.data.instructions import dump_example, encode, load_example
from apt_ds.data.prompts import prompt_ids
from apt_ds.data.rewritten import is_rewritable, json_lines, with_answer
from apt_ds.data.tokenized import IGNORED
from tests.data.test_instructions import ADD, CHAT, CROOKED, FORGETFUL, GREET, TEMPLATE, WITHOUT_END, tokenizer

CALLING = Example(
    (
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "see"}}]},
    )
)
TOOLS = ({"type": "function", "function": {"name": "see", "parameters": {}}},)


def test_only_trained_texts_are_rewritten() -> None:
    assert is_rewritable(ADD) and is_rewritable(CHAT) and not is_rewritable(CALLING)
    assert not is_rewritable(Example(CHAT.messages, untrained=frozenset({4})))
    assert is_rewritable(Example(CHAT.messages, untrained=frozenset({2})))


def test_earlier_answers_become_context() -> None:
    rewritten = with_answer(CHAT, "Green", finished=True)
    assert rewritten.messages[:4] == CHAT.messages[:4] and rewritten.output == "Green"
    assert rewritten.untrained == {2} and not rewritten.unfinished and CHAT.untrained == frozenset()


@pytest.mark.parametrize("example", [ADD, GREET, CHAT, Example(CHAT.messages, tools=TOOLS)])
@pytest.mark.parametrize("finished", [True, False])
def test_records_are_read_as_they_were_written(example: Example, finished: bool, tmp_path: Path) -> None:
    rewritten = with_answer(example, " The answer\u2028 is “3”", finished)
    file = tmp_path / "answers.jsonl"
    file.write_text(json_lines([rewritten, rewritten]), "utf-8")
    assert load_examples(file) == [rewritten, rewritten]
    assert json.loads(file.read_text("utf-8").split("\n")[0])["finish_reason"] == ("stop" if finished else "length")
    assert load_example(*dump_example(rewritten)) == rewritten


@pytest.mark.parametrize("template", [None, TEMPLATE, FORGETFUL, WITHOUT_END, CROOKED])
@pytest.mark.parametrize("example", [ADD, GREET, CHAT])
def test_a_cut_answer_trains_no_end(template: str | None, example: Example) -> None:
    words = tokenizer(template)
    answer = "Blue it"
    row = encode(with_answer(example, answer, finished=False), words, 500)
    prompt = prompt_ids(example, words)
    trained = [label for label in row["labels"] if label != IGNORED]
    # what the model was given, then what it wrote, and nothing else
    assert row["input_ids"][: len(prompt)] == prompt and row["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert trained == row["input_ids"][len(prompt) :] and words.decode(trained) == answer
    whole = encode(with_answer(example, answer, finished=True), words, 500)
    if template != CROOKED:
        assert whole["input_ids"][: len(row["input_ids"])] == row["input_ids"]
    assert len(whole["labels"]) > len(row["labels"]) - (template == CROOKED)
