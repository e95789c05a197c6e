"""The forms in which data sets say what a conversation is: what becomes of each, and what is refused or warned of."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import Example, load_examples

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
ARGUMENTS = {"town": "Rome", "days": 2}
CALL = {"name": "weather", "arguments": ARGUMENTS}
READ = {"type": "function", "function": CALL}
TOOL = {"name": "weather", "description": "Tells it.", "parameters": {}}
WRAPPED = {"type": "function", "function": TOOL}


def read(folder: Path, *records: dict[str, Any]) -> list[Example]:
    """The examples of a file with these records."""
    path = folder / "a.json"
    path.write_text(json.dumps(records), "utf-8")
    return load_examples(path)


def chat(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    """A record of these messages."""
    return {"messages": list(messages), **columns}


def shared(*turns: tuple[str, str], **columns: Any) -> dict[str, Any]:
    """A ShareGPT record."""
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **columns}


@pytest.mark.parametrize("text", [json.dumps(ARGUMENTS), ARGUMENTS])
@pytest.mark.parametrize("extra", [{}, {"content": None}, {"content": ""}])
def test_all_forms_of_a_call_are_one(text: object, extra: dict[str, Any], tmp_path: Path) -> None:
    call = {"name": "weather", "arguments": text}
    result = {"role": "tool", "content": "sun", "name": "weather"}
    openai = {"role": "assistant", **extra, "tool_calls": [{"type": "function", "id": "7", "function": call}]}
    bare = {"role": "assistant", **extra, "tool_calls": [call]}
    older = {"role": "assistant", **extra, "function_call": call, "tool_calls": None}
    returned = {"role": "function", "name": "weather", "content": "sun"}
    examples = read(
        tmp_path,
        chat(USER, openai, result, ANSWER, tools=[WRAPPED]),
        chat(USER, bare, result, ANSWER, tools=json.dumps([WRAPPED])),
        chat(USER, older, returned, ANSWER, functions=[TOOL]),
    )
    wanted = {"role": "assistant", "content": "", "tool_calls": [READ]}
    assert examples[0].messages[1] == wanted | {"tool_calls": [READ | {"id": "7"}]}
    for one in examples:
        assert one.tools == (WRAPPED,) and one.messages[2] == result and one.messages[3] == ANSWER
    assert examples[1].messages[1] == examples[2].messages[1] == wanted


def test_sharegpt_calls_and_observations_become_calls_and_tool_messages(tmp_path: Path) -> None:
    turns = [("human", "Hi"), ("function_call", json.dumps(CALL)), ("observation", "sun"), ("gpt", "Hello")]
    several = [("human", "Hi"), ("function_call", json.dumps([CALL, CALL])), ("observation", "sun"), ("gpt", "Hello")]
    one, two = read(tmp_path, shared(*turns, system="Be brief.", tools=json.dumps([TOOL])), shared(*several, tools=""))
    called = {"role": "assistant", "content": "", "tool_calls": [READ]}
    assert one.messages == (SYSTEM, USER, called, {"role": "tool", "content": "sun"}, ANSWER)
    assert one.tools == (WRAPPED,) and two.tools == ()
    assert two.messages[1]["tool_calls"] == [READ, READ]


def test_history_and_system_become_turns(tmp_path: Path) -> None:
    history = [["Where first?", "Lyon"], ["And?", "Nice"]]
    both, only_system, neither = read(
        tmp_path,
        ALPACA | {"history": history, "system": "Be brief."},
        ALPACA | {"history": [], "system": "Be brief."},
        ALPACA | {"history": None, "system": ""},
    )
    texts = [message["content"] for message in both.messages]
    assert texts == ["Be brief.", "Where first?", "Lyon", "And?", "Nice", "Add.\n\n1 and 2", "3"]
    assert [m["role"] for m in both.messages] == ["system", *("user", "assistant") * 3]
    assert only_system.messages[0] == SYSTEM and len(only_system.messages) == 3
    assert neither == Example.from_instruction("Add.", "1 and 2", "3")
    by_column, again = read(
        tmp_path, chat(USER, ANSWER, system="Be brief."), chat(SYSTEM, USER, ANSWER, system="Be brief.")
    )
    assert by_column.messages == again.messages == (SYSTEM, USER, ANSWER)


@pytest.mark.parametrize("name", ["weight", "train", "loss", "loss_mask"])
@pytest.mark.parametrize(("off", "on"), [(0, 1), (0.0, 1.0), (False, True), (0, None)])
def test_a_weight_says_whether_an_answer_is_trained(name: str, off: object, on: object, tmp_path: Path) -> None:
    messages = [USER | {name: off}, ANSWER | {name: off}, USER, ANSWER | {name: on}]
    plain, with_system = read(tmp_path, chat(*messages), chat(*messages, system="Be brief."))
    assert plain.messages == (USER, ANSWER, USER, ANSWER)
    assert [i for i in range(4) if i in plain.untrained and i % 2] == [1]
    assert [i for i in range(5) if i in with_system.untrained and i in (2, 4)] == [2]


def test_text_parts_are_joined(tmp_path: Path) -> None:
    split = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert read(tmp_path, chat(USER, ANSWER | {"content": split}))[0].messages == (USER, ANSWER)


IMAGE = {"type": "image_url", "image_url": {"url": "http://x"}}
REFUSED = [
    (chat(USER | {"content": [IMAGE]}, ANSWER), "message 1, 'content': part 1 is 'image_url'"),
    (chat(USER, ANSWER, images=["a.png"]), "'images' is not supported"),
    (ALPACA | {"audios": ["a.wav"]}, "'audios' is not supported"),
    (chat(USER, ANSWER | {"refusal": "I cannot."}), "message 2: 'refusal' is not supported"),
    (chat(USER, ANSWER | {"weight": 0.5}), "message 2: 'weight' is '0.5'. Give 0"),
    (chat(USER, ANSWER | {"train": "no"}), "message 2: 'train' is 'no'. Give 0"),
    (chat(USER | {"weight": 1}, ANSWER), "message 1: 'weight' is 1 on a message of the user"),
    (chat(USER, ANSWER | {"weight": 1, "train": False}), "message 2: 'train' and 'weight' contradict"),
    (chat(USER, ANSWER | {"weight": 0}), "every answer has weight 0"),
    (chat(USER | {"tool_calls": [CALL]}, ANSWER), "message 1: 'tool_calls' on a message of the user"),
    (chat(USER, ANSWER | {"tool_calls": ["x"]}), "message 2, 'tool_calls' 1: unknown form"),
    (chat(USER, ANSWER | {"tool_calls": [{"function": {"arguments": {}}}]}), "'tool_calls' 1: unknown form"),
    (chat(USER, ANSWER | {"tool_calls": "x"}), "message 2: 'tool_calls' must be a list, not str"),
    (chat(USER, ANSWER | {"tool_calls": [CALL | {"arguments": "{"}]}), "'arguments' is text, but not JSON"),
    (
        chat(USER, ANSWER | {"function_call": CALL | {"arguments": "[1]"}}),
        "must be an object, or JSON of one, not list",
    ),
    (chat(USER, ANSWER, tools="{"), "'tools' is text, but not JSON"),
    (chat(USER, ANSWER, tools={"weather": 1}), "'tools' must be a list, not dict"),
    (chat(USER, ANSWER, tools=[TOOL, {"type": "retrieval"}]), "'tools', number 2, has an unknown form"),
    (chat(USER, ANSWER, functions=["def f(): ..."]), "'functions', number 1, has an unknown form"),
    (chat(USER, ANSWER, tools=[TOOL], functions=[TOOL]), "both 'tools' and 'functions'"),
    (chat(USER, ANSWER | {"tools": [TOOL]}), "message 2: 'tools' is not supported"),
    (shared(("human", "Hi"), ("function_call", "weather()"), ("gpt", "x")), "message 2, 'value': not JSON"),
    (shared(("human", "Hi"), ("function_call", "[]"), ("gpt", "x")), "message 2, 'value': not JSON"),
    (ALPACA | {"history": "Hi"}, "'history' must be a list of"),
    (ALPACA | {"history": [["Hi"]]}, "'history', pair 1, must be a question and an answer"),
    (ALPACA | {"history": [["Hi", 3]]}, "'history', pair 1, must be"),
    (ALPACA | {"history": [["Hi", " "]]}, "answer 1: the output is empty"),
    (ALPACA | {"system": ["x"]}, "'system' must be text, not list"),
    (chat(SYSTEM, USER, ANSWER, system="Be long."), "'system' differs from the system message"),
    (chat(USER, ANSWER | {"content": ""}, USER, ANSWER), "answer 1: the output is empty"),
    (chat(USER, ANSWER | {"content": "", "tool_calls": []}, USER, ANSWER), "answer 1: the output is empty"),
]


@pytest.mark.parametrize(("record", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_trained_on_is_refused_by_record_and_field(
    record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, ALPACA, record)
    assert "a.json, record 2" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_values_are_as_absent_ones(tmp_path: Path) -> None:
    nothing = {"tool_calls": [], "function_call": None, "weight": None, "refusal": None, "images": []}
    plain = read(tmp_path, chat(USER, ANSWER | nothing, tools=None, functions=[], images=None, system=None))[0]
    assert plain == Example((USER, ANSWER)) and plain.messages == (USER, ANSWER)


def test_an_empty_answer_of_weight_0_may_stay(tmp_path: Path) -> None:
    silent = ANSWER | {"content": "", "weight": 0}
    assert read(tmp_path, chat(USER, silent, USER, ANSWER))[0].untrained == {1}


def test_a_few_empty_inner_answers_in_a_large_set_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = chat(USER, ANSWER | {"content": " "}, USER, ANSWER)
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path, *[chat(USER, ANSWER)] * 150, broken)) == 150
    assert "left out 1 records" in caplog.text and "record 151, answer 1" in caplog.text


def test_columns_that_are_not_used_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(tmp_path, ALPACA, ALPACA | {"text": "x", "rejected": "4"}, ALPACA | {"text": "y", "note": ""})
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path / 'a.json'}: not used: 'text', 'rejected' (first in {tmp_path / 'a.json'}, record 2)"
        ]
        caplog.clear()
        read(tmp_path, chat(USER | {"name": "Ann"}, ANSWER, id=7))
        assert len(caplog.records) == 1 and "'name', 'id'" in caplog.text and "record 1, message 1" in caplog.text
        caplog.clear()
        read(tmp_path, ALPACA, chat(USER, ANSWER, tools=[TOOL]))
        assert not caplog.records
