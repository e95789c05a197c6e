"""Examples whose last answer a model has written, and their records in a file of JSON lines.

The last answer is the only trained one of such an example. Earlier answers are context. An answer that was cut at a
limit has `finish_reason` "length", so that no end of turn is trained after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from apt_ds.data.conversations import FINISH_REASON, LENGTH, STOP, Example

ROLE = "assistant"


def is_rewritable(example: Example) -> bool:
    """Whether a model may write the last answer: a text that is trained. Calls of tools stay as they are."""
    last = len(example.messages) - 1
    return last not in example.untrained and not example.messages[last].get("tool_calls")


def with_answer(example: Example, text: str, finished: bool) -> Example:
    """The example with another last answer. finished: the model ended it by itself."""
    last = len(example.messages) - 1
    messages = (*example.messages[:last], example.messages[last] | {"content": text})
    earlier = frozenset(i for i in range(last) if example.messages[i]["role"] == ROLE)
    return replace(example, messages=messages, untrained=earlier, unfinished=not finished)


def record_of(example: Example) -> dict[str, Any]:
    """The example as `conversations.parse_record` reads it."""
    record: dict[str, Any] = {}
    if example.instruction:
        record |= {"instruction": example.instruction, "input": example.input, "output": example.output}
    else:
        # a weight is stated where it is 0
        weights = [{"weight": 0} if i in example.untrained else {} for i in range(len(example.messages))]
        record["messages"] = [message | weight for message, weight in zip(example.messages, weights, strict=True)]
    if example.tools:
        record["tools"] = list(example.tools)
    return record | {FINISH_REASON: LENGTH if example.unfinished else STOP}


def json_lines(examples: Iterable[Example]) -> str:
    """The records of examples, one a line."""
    return "".join(json.dumps(record_of(example), ensure_ascii=False) + "\n" for example in examples)
