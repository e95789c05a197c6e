"""Turns of a conversation: from the forms that data sets use to the one form that chat templates read.

A message has `role` (system, user, assistant or tool) and `content`, a text. An assistant's message may have
`tool_calls`, a list of {"type": "function", "function": {"name", "arguments"}} with arguments as an object. A tool's
message may have `name` and `tool_call_id`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from apt_ds.config.errors import UserError
from apt_ds.data.readers import kind, text_of
from apt_ds.data.text import mended

Message = dict[str, Any]

CALL = "function_call"
ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {
    "human": "user",
    "gpt": "assistant",
    CALL: "assistant",
    **dict.fromkeys(("observation", "function", "function_response"), "tool"),
}
# how data sets say whether an answer is trained: OpenAI, Axolotl, ms-swift, Megatron
WEIGHTS = ("weight", "train", "loss", "loss_mask")
# what changes the meaning of a message or a record and cannot be trained on
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_UNSUPPORTED = (*MEDIA, "files", "refusal", "tools", "functions")


class Form(NamedTuple):
    """Under which names a record has its turns, their roles and their texts."""

    column: str
    role: str
    text: str


MESSAGES = Form("messages", "role", "content")
SHAREGPT = Form("conversations", "from", "value")


class Turns(NamedTuple):
    """Messages, and the indices of those answers that are context only."""

    messages: list[Message]
    untrained: frozenset[int]


class Unused:
    """Collects the columns that reading does not use, with the place of the first record that has each."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}

    def note(self, given: dict[str, Any], used: tuple[str, ...], where: str) -> None:
        """Remember what `given` has besides `used`. An empty value does not count."""
        for name, value in given.items():
            if name not in used and not is_empty(value):
                self.first.setdefault(str(name), where)


def is_empty(value: Any) -> bool:
    """Whether a value says as much as an absent one."""
    return value is None or value in ("", [], {})


def refuse_unsupported(given: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    """Raise UserError for the first of `names` that has a value."""
    for name in names:
        if not is_empty(given.get(name)):
            raise UserError(f"{where}: '{name}' is not supported: only text is trained. Remove it or the record")


def read_turns(turns: Any, form: Form, where: str, unused: Unused) -> Turns:
    """The messages of a chat record.

    Raises:
        UserError: a turn that cannot be used. The message names record, message and field.
    """
    if not isinstance(turns, list) or len(turns) < 2:
        raise UserError(f"{where}: '{form.column}' must be a list of at least a question and an answer")
    messages: list[Message] = []
    untrained: set[int] = set()
    for number, turn in enumerate(turns):
        place = f"{where}, message {number + 1}"
        if not isinstance(turn, dict):
            raise UserError(f"{place}: a message must be an object, not {kind(turn)}")
        messages.append(_read_turn(turn, form, place, unused))
        if not _is_trained(turn, messages[-1]["role"], place):
            untrained.add(number)
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last message is the {messages[-1]['role']}'s, not the assistant's")
    return Turns(messages, frozenset(untrained))


def _read_turn(turn: dict[str, Any], form: Form, place: str, unused: Unused) -> Message:
    given_role = text_of(turn, (form.role,), place)
    if given_role not in ROLES:
        raise UserError(f"{place}: unknown {form.role} '{given_role}'. Use one of {', '.join(ROLES)}")
    role = ROLES[given_role]
    refuse_unsupported(turn, _UNSUPPORTED, place)
    if given_role == CALL:
        calls = _calls_of_text(text_of(turn, (form.text,), place), f"{place}, '{form.text}'")
        message: Message = {"role": role, "content": "", "tool_calls": calls}
    else:
        calls = _read_calls(turn, place)
        if calls and role != "assistant":
            raise UserError(
                f"{place}: '{_call_column(turn)}' on a message of the {role}. Only an assistant calls tools"
            )
        blank = bool(calls) and turn.get(form.text) is None
        message = {"role": role, "content": "" if blank else _read_text(turn, form.text, place)}
        message |= {"tool_calls": calls} if calls else {}
    used = [form.role, form.text, "tool_calls", CALL, *WEIGHTS]
    if role == "tool":
        for name in ("name", "tool_call_id"):
            if not is_empty(turn.get(name)):
                message[name] = text_of(turn, (name,), place)
            used.append(name)
    unused.note(turn, tuple(used), place)
    return message


def _read_text(turn: dict[str, Any], column: str, place: str) -> str:
    """The text of a turn. A list of text parts is joined."""
    parts = turn.get(column)
    if not isinstance(parts, list):
        return text_of(turn, (column,), place)
    texts = []
    for number, part in enumerate(parts, start=1):
        what = part.get("type") if isinstance(part, dict) else kind(part)
        if isinstance(part, str):
            texts.append(part)
        elif what == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            problem = f"part {number} is {str(what)[:40]!r}. Only parts of type 'text' are supported"
            raise UserError(f"{place}, '{column}': {problem}. Remove the part or the record")
    return "".join(texts)


def _is_trained(turn: dict[str, Any], role: str, place: str) -> bool:
    """Whether a message is trained by its own weight. An answer without one is trained."""
    columns: dict[bool, str] = {}
    for name in WEIGHTS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise UserError(f"{place}: '{name}' is {str(value)[:40]!r}. Give 0 (not trained) or 1 (trained)")
        if value and role != "assistant":
            raise UserError(f"{place}: '{name}' is {value} on a message of the {role}. Only answers are trained")
        columns[bool(value)] = name
    if len(columns) > 1:
        raise UserError(f"{place}: '{columns[False]}' and '{columns[True]}' contradict each other. Keep one of them")
    return False not in columns


def _call_column(turn: dict[str, Any]) -> str:
    return CALL if is_empty(turn.get("tool_calls")) else "tool_calls"


def _read_calls(turn: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The calls under `tool_calls`, or the single one under OpenAI's older `function_call`."""
    column = _call_column(turn)
    value = turn.get(column)
    if is_empty(value):
        return []
    calls = [value] if column == CALL else value
    if not isinstance(calls, list):
        raise UserError(f"{place}: '{column}' must be a list, not {kind(calls)}")
    return [_read_call(call, f"{place}, '{column}' {number}") for number, call in enumerate(calls, start=1)]


def _calls_of_text(text: str, place: str) -> list[dict[str, Any]]:
    """The calls that a ShareGPT turn of `function_call` holds as JSON: one object, or a list of them."""
    try:
        content = _loads(text)
    except (ValueError, RecursionError):
        content = None
    calls = content if isinstance(content, list) else [content]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise UserError(
            f'{place}: not JSON of the form {{"name": ..., "arguments": {{...}}}}. Mend or remove the record'
        )
    return [_read_call(call, f"{place}, call {number}") for number, call in enumerate(calls, start=1)]


def _read_call(call: Any, place: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise UserError(f"{place}: unknown form of a call. Give an object with 'name' and 'arguments'")
    arguments = inner.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = _loads(arguments)
        except (ValueError, RecursionError):
            raise UserError(f"{place}: 'arguments' is text, but not JSON. Mend or remove the record") from None
    arguments = {} if is_empty(arguments) or isinstance(arguments, str) else arguments
    if not isinstance(arguments, dict):
        raise UserError(f"{place}: 'arguments' must be an object, or JSON of one, not {kind(arguments)}")
    tool_call = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    return tool_call | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def read_tools(record: dict[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    """The functions that a record offers under `tools`, or OpenAI's older `functions`. JSON text is parsed."""
    given = [name for name in ("tools", "functions") if not is_empty(record.get(name))]
    if not given:
        return ()
    if len(given) > 1:
        raise UserError(f"{where}: both 'tools' and 'functions' are given. Keep one of them")
    value, place = record[given[0]], f"{where}: '{given[0]}'"
    if isinstance(value, str):
        if not value.strip():
            return ()
        try:
            value = _loads(value)
        except (ValueError, RecursionError):
            raise UserError(f"{place} is text, but not JSON of a list. Mend or remove it") from None
    if not isinstance(value, list):
        raise UserError(f"{place} must be a list, not {kind(value)}")
    return tuple(_read_tool(tool, f"{place}, number {number}") for number, tool in enumerate(value, start=1))


def _read_tool(tool: Any, place: str) -> dict[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    known = isinstance(inner, dict) and isinstance(inner.get("name"), str) and inner["name"]
    if not known or tool.get("type", "function") != "function":
        raise UserError(f"{place}, has an unknown form. Give objects with 'name', 'description' and 'parameters'")
    return tool if inner is not tool else {"type": "function", "function": tool}


def _loads(text: str) -> Any:
    return mended(json.loads(text))
