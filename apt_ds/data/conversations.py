"""Conversations to train on, read from files or the hub.

Reading is strict: a broken record stops the run with its line, because a silently skipped one changes the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from apt_ds.config.errors import UserError
from apt_ds.config.paths import shortened
from apt_ds.data.readers import Located, Source, find_source, is_hub_name, kind, leave_out, log, text_of
from apt_ds.data.turns import (
    MEDIA,
    MESSAGES,
    SHAREGPT,
    Message,
    Turns,
    Unused,
    is_empty,
    read_tools,
    read_turns,
    refuse_unsupported,
)

BUILTIN = "builtin:instructions"
EMPTY = "the output is empty"
UNTRAINED = "every answer has weight 0, so that none is trained"
# as servers of language models report how an answer ended
FINISH_REASON, STOP, LENGTH = "finish_reason", "stop", "length"

_SHARED = ("system", "tools", "functions", FINISH_REASON)
_ALPACA = ("instruction", "input", "output", "history", *_SHARED)


@dataclass(frozen=True)
class Example:
    """One conversation to train on. Its last message is the assistant's.

    Attributes:
        messages: the turns, as chat templates take them.
        instruction: of an instruction record, as it was given, for the Alpaca prompt. Empty in a chat record.
        input: the same for its `input`.
        tools: the functions the assistant may call, as chat templates take them.
        untrained: indices of answers that are context only.
        where: the file and the record, for messages.
        unfinished: the last answer was cut where its generation reached a limit. No end of turn is trained after it.
    """

    messages: tuple[Message, ...]
    instruction: str = ""
    input: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    untrained: frozenset[int] = frozenset()
    where: str = field(default="", compare=False)
    unfinished: bool = False

    @classmethod
    def from_instruction(cls, instruction: str, input: str = "", output: str = "", **others: Any) -> Example:
        """The example of an Alpaca record: one user message, one answer. others: more fields of the example."""
        question = f"{instruction}\n\n{input}" if input else instruction
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": output})
        return cls(messages, instruction, input, **others)

    @property
    def output(self) -> str:
        """The last answer."""
        return self.messages[-1]["content"]

    def empty_answer(self) -> str:
        """Where a trained answer is empty. '' if no trained answer is."""
        answers = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        for number, i in enumerate(answers, start=1):
            message = self.messages[i]
            if i not in self.untrained and not message["content"].strip() and not message.get("tool_calls"):
                return self.where if i == len(self.messages) - 1 else f"{self.where}, answer {number}"
        return ""

    def is_trained(self) -> bool:
        """Whether any answer is."""
        return any(m["role"] == "assistant" and i not in self.untrained for i, m in enumerate(self.messages))


def builtin_path() -> Path:
    """The instruction set that comes with the package (Alpaca format, JSON lines)."""
    return Path(str(resources.files("apt_ds.data") / "builtin" / "instructions.jsonl"))


def load_examples(data_path: str | Path, split: str = "train") -> list[Example]:
    """All examples of a file, a folder of shards, a data set of the hub, or `builtin:instructions`.

    Records are in Alpaca format (instruction, optional input, output) or chat format (messages with role
    and content, or conversations with from and value). A record may also have a system prompt, earlier pairs of
    question and answer (`history`), tools, and `finish_reason` ("length": the last answer was cut and has no end).
    One warning names the columns that are not used.

    Args:
        data_path: what the user gave.
        split: the part of a hub data set. A file is one split.

    Raises:
        UserError: something cannot be used. The message names the file, and the line or record.
    """
    source = example_source(data_path, split)
    return list(read_examples(source.records(), source.name))


def example_source(data_path: str | Path, split: str = "train") -> Source:
    """Where the examples of `data_path` are. Raises UserError where there is nothing of that name."""
    name = str(data_path)
    path = builtin_path() if name == BUILTIN else Path(name)
    if not os.path.exists(path) and not is_hub_name(name):
        raise UserError(f"no such data file: {shortened(name)}. Give a file, a folder or a hub name")
    return find_source(str(path), (split,), hub=(name, split, ""))


def read_examples(records: Iterable[Located], name: str) -> Iterator[Example]:
    """The examples of records, one at a time. After the last one it warns of what is left out or not used.

    Raises:
        UserError: a record cannot be used, or too many are left out.
    """
    count = 0
    blank: list[str] = []
    untrained: list[str] = []
    unused = Unused()
    for where, record in records:
        example = parse_record(record, where, unused)
        if not example.is_trained():
            untrained.append(where)
        elif empty := example.empty_answer():
            blank.append(empty)
        else:
            count += 1
            yield example
    total = len(blank) + len(untrained) + count
    leave_out(blank, total, EMPTY, name)
    leave_out(untrained, total, UNTRAINED, name)
    if not count:
        raise UserError(f"{name} holds no records. Give a source with at least one")
    warn_unused(unused, name)


def warn_unused(unused: Unused, name: str) -> None:
    """Warn of the columns of a source that reading does not use."""
    if unused.first:
        columns = ", ".join(f"'{column}'" for column in unused.first)
        log.warning("%s: not used: %s (first in %s)", name, columns[:300], next(iter(unused.first.values())))


def parse_record(record: Any, where: str, unused: Unused) -> Example:
    """The example of a record, which may have nothing to train.

    Raises:
        UserError: the record cannot be used.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be an object, not {kind(record)}")
    refuse_unsupported(record, MEDIA, where)
    tools = read_tools(record, where)
    unfinished = record.get(FINISH_REASON) == LENGTH
    for form in (MESSAGES, SHAREGPT):
        if form.column in record:
            turns = _with_system(read_turns(record[form.column], form, where, unused), record, where)
            unused.note(record, (form.column, *_SHARED), where)
            return Example(tuple(turns.messages), "", "", tools, turns.untrained, where, unfinished)
    instruction, output = text_of(record, ("instruction",), where), text_of(record, ("output",), where)
    if not instruction.strip():
        raise UserError(f"{where}: the instruction is empty. Fill it in or remove the record")
    input = "" if record.get("input") is None else text_of(record, ("input",), where)
    unused.note(record, _ALPACA, where)
    facts: dict[str, Any] = {"tools": tools, "where": where, "unfinished": unfinished}
    example = Example.from_instruction(instruction, input, output, **facts)
    turns = _with_system(Turns([*_history(record, where), *example.messages], frozenset()), record, where)
    return Example(tuple(turns.messages), **facts) if len(turns.messages) > len(example.messages) else example


def _history(record: dict[str, Any], where: str) -> list[Message]:
    """The turns before an Alpaca record's own, from pairs of question and answer."""
    pairs = record.get("history")
    if is_empty(pairs):
        return []
    if not isinstance(pairs, list):
        raise UserError(f"{where}: 'history' must be a list of [question, answer] pairs, not {kind(pairs)}")
    messages: list[Message] = []
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"{where}: 'history', pair {number}, must be a question and an answer, both text")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def _with_system(turns: Turns, record: dict[str, Any], where: str) -> Turns:
    """The turns after what the record's own column `system` says."""
    if is_empty(record.get("system")) or not text_of(record, ("system",), where).strip():
        return turns
    message = {"role": "system", "content": record["system"]}
    if message in turns.messages:
        return turns
    if any(turn["role"] == "system" for turn in turns.messages):
        raise UserError(f"{where}: 'system' differs from the system message of the conversation. Keep one of them")
    return Turns([message, *turns.messages], frozenset(index + 1 for index in turns.untrained))
