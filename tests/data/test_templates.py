"""Chat templates: tools and calls that they write or leave out, weights of answers, and the time they write."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import Example, load_examples
from apt_ds.data.instructions import build_dataset, encode
from apt_ds.data.prompts import prompt_ids, render_prompt
from tests.data.test_instructions import CHAT, GREET, TEMPLATE, WITHOUT_END, parts, tokenizer

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}"
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
)
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def calling(call: str, tools: str = TOOLS) -> str:
    """A template that writes each call as `call` does, of a variable `f`."""
    calls = "{% for c in m.tool_calls or [] %}{% set f = c.function %}" + call + "{% endfor %}"
    return tools + "{% for m in messages %}" + TURN + calls + "<|im_end|>\n{% endfor %}" + ASK


# as Qwen 2.5 and Llama 3 write arguments
AS_OBJECT = calling('<call>{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}</call>')
# as DeepSeek does, which cannot join text and an object
AS_TEXT = calling("<call>{{ f.name + ' ' + f.arguments }}</call>")
PRINTED = calling("<call>{{ f.name }} {{ f.arguments }}</call>")
WITHOUT_ARGUMENTS = calling("<call>{{ f.name }}</call>")
WITHOUT_TOOLS = calling("<call>{{ f.name }} {{ f.arguments | tojson }}</call>", tools="")
WITHOUT_CALLS = calling("")
WITHOUT_RESULTS = AS_OBJECT.replace(TURN, "<|im_start|>{{ m.role }}\n{{ m.content if m.role != 'tool' }}")
DATED = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y %H:%M:%S') }}<|im_end|>\n" + TEMPLATE

WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}
RECORD: dict[str, Any] = {
    "tools": [{"type": "function", "function": WEATHER}],
    "messages": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"town": "Köln"}}}
            ],
        },
        {"role": "tool", "content": "sun", "tool_call_id": "1"},
        {"role": "assistant", "content": "Sunny."},
    ],
}


def example(folder: Path, record: dict[str, Any]) -> Example:
    """What is read of one record."""
    path = folder / "a.json"
    path.write_text(json.dumps([record]), "utf-8")
    return load_examples(path)[0]


def trained(conversation: Example, template: str | None) -> list[str]:
    """The texts that are trained."""
    tok = tokenizer(template)
    return [text for text, is_trained in parts(encode(conversation, tok, 999), tok) if is_trained]


@pytest.mark.parametrize("template", [AS_OBJECT, AS_TEXT, PRINTED])
def test_calls_are_trained_and_tools_and_results_are_context(template: str, tmp_path: Path) -> None:
    conversation, tok = example(tmp_path, RECORD), tokenizer(template)
    (before, _), (call, first), (between, _), (answer, second) = parts(encode(conversation, tok, 999), tok)
    assert first and second and answer == "Sunny.<|im_end|>"
    assert '"name": "weather", "description": "Tells it."' in before and "Weather?" in before
    assert "weather" in call and '{"town": "Köln"}' in call and call.endswith("</call><|im_end|>")
    assert "tool\nsun<|im_end|>" in between
    ids = encode(conversation, tok, 999)["input_ids"]
    prompt = prompt_ids(conversation, tok)
    assert (
        ids[: len(prompt)] == prompt
        and tok.decode(prompt) == render_prompt(conversation, tok) == before + call + between
    )


@pytest.mark.parametrize(
    ("template", "left_out"),
    [
        (TEMPLATE, "'tools', 'tool_calls' of message 2"),
        (WITHOUT_TOOLS, "not write 'tools'. Give"),
        (WITHOUT_CALLS, "not write 'tool_calls' of message 2. Give"),
        (WITHOUT_ARGUMENTS, "not write 'tool_calls' of message 2. Give"),
        (WITHOUT_RESULTS, "not write message 3 of role 'tool'. Give"),
        (None, "no chat template, so 'tools' and 'tool_calls' cannot be written"),
    ],
)
def test_what_a_template_leaves_out_is_refused_by_name(template: str | None, left_out: str, tmp_path: Path) -> None:
    conversation = example(tmp_path, RECORD)
    for call in (encode, lambda *given: prompt_ids(*given[:2])):
        with pytest.raises(UserError) as caught:
            call(conversation, tokenizer(template), 999)
        assert left_out in str(caught.value) and f"{tmp_path / 'a.json'}, record 1: " in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_call_may_be_the_last_answer_and_ends_its_turn(tmp_path: Path) -> None:
    last = RECORD | {"messages": RECORD["messages"][:2]}
    assert trained(example(tmp_path, last), AS_OBJECT)[0].endswith("</call><|im_end|>")
    open_ended = AS_OBJECT.replace("<|im_end|>", "")
    assert trained(example(tmp_path, last), open_ended)[0].endswith("</call><|im_end|>")
    crooked = AS_OBJECT.replace(ASK, "{% if add_generation_prompt %}>{% endif %}")
    with pytest.raises(UserError, match=r"record 1: .*last call after its generation prompt"):
        encode(example(tmp_path, last), tokenizer(crooked), 999)


def test_a_system_message_that_is_left_out_is_refused() -> None:
    deaf = "{% for m in messages if m.role != 'system' %}" + TURN + "<|im_end|>\n{% endfor %}" + ASK
    with pytest.raises(UserError, match="does not write the system message"):
        encode(CHAT, tokenizer(deaf), 999)
    changing = TEMPLATE.replace("m['content']", "m['content'] | replace('Be', 'Do be')")
    assert "Do be brief." in render_prompt(CHAT, tokenizer(changing))
    encode(CHAT, tokenizer(changing), 999)


@pytest.mark.parametrize("template", [None, TEMPLATE, WITHOUT_END])
def test_an_answer_of_weight_0_is_context(template: str | None) -> None:
    tok, both = tokenizer(template), encode(CHAT, tokenizer(template), 999)
    for untrained, expected in ((2, "\n\nBlue it is."), (4, "Red.")):
        row = encode(Example(CHAT.messages, untrained=frozenset([untrained])), tok, 999)
        assert row["input_ids"] == both["input_ids"]
        (text,) = [text for text, is_trained in parts(row, tok) if is_trained]
        assert text.removesuffix("<|im_end|>") == expected
    first = Example(CHAT.messages, untrained=frozenset([4]))
    assert prompt_ids(first, tok) == prompt_ids(CHAT, tok)


def test_a_refusal_names_the_record_and_gives_the_reason(tmp_path: Path) -> None:
    strict = "{% if messages | length > 2 %}{{ raise_exception('roles must alternate') }}{% endif %}" + TEMPLATE
    chat = {"messages": [*CHAT.messages]}
    with pytest.raises(UserError, match=r"a\.json, record 1: the chat template refuses .*: roles must alternate$"):
        encode(example(tmp_path, chat), tokenizer(strict), 999)
    wrong = {
        "{{ 'a' + 1 }}": "refuses",
        "{{ messages.x.y }}": "refuses",
        "{% if %}": "not valid Jinja",
        "{{ 1 / 0 }}": "division",
    }
    for text, problem in wrong.items():
        with pytest.raises(UserError, match=problem) as caught:
            encode(GREET, tokenizer(text), 999)
        assert "\n" not in str(caught.value)


def test_the_time_is_what_the_run_says(monkeypatch: pytest.MonkeyPatch) -> None:
    tok, now = tokenizer(DATED), datetime(2024, 2, 29, 23, 59, 59)
    assert "Today: 29 Feb 2024 23:59:59" in render_prompt(GREET, tok, now)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    assert "Today: 01 Mar 2031 00:00:00" in render_prompt(GREET, tok)
    again = render_prompt(GREET, tok, now)
    assert "29 Feb 2024" in again and tok.decode(prompt_ids(GREET, tok, now)) == again
    assert "01 Mar 2031" in render_prompt(GREET, tok)
    rows = build_dataset([GREET, CHAT], tok, 999, now)
    assert tok.decode(encode(GREET, tok, 999, now)["input_ids"]).count("29 Feb 2024") == 1
    assert rows.fingerprint != build_dataset([GREET, CHAT], tok, 999).fingerprint
    monkeypatch.undo()
    assert rows.fingerprint == build_dataset([GREET, CHAT], tok, 999, now).fingerprint


class Later(datetime):
    """A clock that has moved on."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2031, 3, 1)
