"""What a language model eats: conversations, read from files or the hub.

Reading is strict: a broken record stops the run with its line, because a silently skipped one changes the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from apt_ds.config import UserError
from apt_ds.data.records import JSON, Located, is_hub_name, kind, leave_out, read_file, read_hub, text_of

BUILTIN = "builtin:instructions"

Message = dict[str, str]

_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {
    "human": "user",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Example:
    """One conversation to learn from; its last message is the assistant's.

    An instruction record keeps its raw `instruction` and `input` for the Alpaca prompt; both are empty in a
    chat record.
    """

    messages: tuple[Message, ...]
    instruction: str = ""
    input: str = ""

    @classmethod
    def from_instruction(cls, instruction: str, input: str = "", output: str = "") -> Example:
        """The example of an Alpaca record: one user message, one answer."""
        question = f"{instruction}\n\n{input}" if input else instruction
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": output})
        return cls(messages, instruction, input)

    @property
    def output(self) -> str:
        """The last answer."""
        return self.messages[-1]["content"]


def builtin_path() -> Path:
    """The instruction set that comes with the package (Alpaca format, JSON lines)."""
    return Path(str(resources.files("apt_ds.data.builtin") / "instructions.jsonl"))


def load_examples(data_path: str | Path, split: str = "train") -> list[Example]:
    """Reads examples from a .json or .jsonl file, a dataset of the hub, or `builtin:instructions`.

    Records are in Alpaca format (instruction, optional input, output) or chat format (messages with role
    and content, or conversations with from and value). `split` names the part of a hub dataset; a file is
    one split. UserError names the file and the line or record of whatever cannot be used.
    """
    name = str(data_path)
    path = builtin_path() if name == BUILTIN else Path(name)
    if path.is_dir():
        raise UserError(f"{name} is a folder; give one .json or .jsonl file in it")
    if path.is_file():
        records = read_file(path, JSON)
    elif is_hub_name(name):
        records = read_hub(name, split)
    else:
        raise UserError(f"no such data file: {name}")
    return _parse(records, name)


def _parse(records: Iterable[Located], name: str) -> list[Example]:
    examples: list[Example] = []
    blank: list[str] = []
    for where, record in records:
        example = _parse_record(record, where)
        if not example.output.strip():
            blank.append(where)
        else:
            examples.append(example)
    leave_out(blank, len(blank) + len(examples), "the output is empty", name)
    if not examples:
        raise UserError(f"{name} holds no records; it needs at least one")
    return examples


def _parse_record(record: Any, where: str) -> Example:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be an object, not {kind(record)}")
    if "messages" in record:
        return _parse_chat(record["messages"], "messages", "role", "content", where)
    if "conversations" in record:
        return _parse_chat(record["conversations"], "conversations", "from", "value", where)
    instruction, output = text_of(record, ("instruction",), where), text_of(record, ("output",), where)
    if not instruction.strip():
        raise UserError(f"{where}: the instruction is empty; fill it in or remove the record")
    input = "" if record.get("input") is None else text_of(record, ("input",), where)
    return Example.from_instruction(instruction, input, output)


def _parse_chat(turns: Any, column: str, role_key: str, text_key: str, where: str) -> Example:
    if not isinstance(turns, list) or len(turns) < 2:
        raise UserError(f"{where}: '{column}' must be a list of at least a question and an answer")
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        place = f"{where}, message {number}"
        if not isinstance(turn, dict):
            raise UserError(f"{place}: a message must be an object, not {kind(turn)}")
        role = text_of(turn, (role_key,), place)
        if role not in _ROLES:
            raise UserError(f"{place}: unknown {role_key} '{role}'; use one of {', '.join(_ROLES)}")
        messages.append({"role": _ROLES[role], "content": text_of(turn, (text_key,), place)})
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last message is the {messages[-1]['role']}'s, not the assistant's")
    return Example(tuple(messages))
