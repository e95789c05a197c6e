"""What the model eats: examples read from files or the hub, padded batches, and the order of samples.

Reading is strict: a broken record stops the run with its line, because a silently skipped one changes the
result. The order of samples depends on the seed and the step alone, so that a run resumes from its step
number and sees the same global batches however they are split over ranks and micro-batches.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apt_ds.config import UserError

BUILTIN = "builtin:instructions"
IGNORED = -100  # the label cross-entropy skips
BLANK_TOLERANCE = 0.01  # well-known sets hold a few empty answers; more of them is a broken file

Message = dict[str, str]
Row = dict[str, list[int]]

_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {
    "human": "user",
    "gpt": "assistant",
}
_FILE_ENDINGS = {".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zip"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

log = logging.getLogger(__name__)


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
        records = _read_file(path)
    elif _HUB_NAME.fullmatch(name) and path.suffix.lower() not in _FILE_ENDINGS:
        records = _read_hub(name, split)
    else:
        raise UserError(f"no such data file: {name}")
    return _parse(records, name)


def _read_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (where, record)."""
    if path.suffix.lower() not in {".json", ".jsonl"}:
        raise UserError(f"{path}: unknown file ending '{path.suffix}'; use .json (one list) or .jsonl")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"{path} is empty; it should hold records with an instruction and an output")
    if path.suffix.lower() == ".jsonl":
        yield from _read_lines(path, text)
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; name it .jsonl if it holds one record per line" if error.msg == "Extra data" else ""
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: not valid JSON ({error.msg}){hint}") from error
    records = content.get("data") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a list of records, or an object with such a list under 'data'")
    for number, record in enumerate(records, start=1):
        yield f"{path}, record {number}", record


def _read_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # not splitlines(), which also cuts at separators that JSON allows inside a string
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            problem = f"not valid JSON ({error.msg}); put one record on one line"
            raise UserError(f"{where}, column {error.colno}: {problem}") from error


def _read_hub(name: str, split: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{name} is no file, and hub datasets need `pip install datasets`") from error
    try:
        records = datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub client has no common error class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"{name} is neither a file nor a dataset whose split '{split}' can be loaded: {reason}"
        raise UserError(message) from error
    for number, record in enumerate(records, start=1):
        yield f"{name}, record {number}", record


def _parse(records: Iterable[tuple[str, Any]], name: str) -> list[Example]:
    examples: list[Example] = []
    blank: list[str] = []
    for where, record in records:
        example = _parse_record(record, where)
        if not example.output.strip():
            blank.append(where)
        else:
            examples.append(example)
    if len(blank) > BLANK_TOLERANCE * (len(blank) + len(examples)):
        others = f" (as in {len(blank) - 1} more records)" if len(blank) > 1 else ""
        raise UserError(f"{blank[0]}: the output is empty{others}; fill it in or remove the record")
    if blank:
        log.warning("%s: left out %d records with an empty output, the first: %s", name, len(blank), blank[0])
    if not examples:
        raise UserError(f"{name} holds no records; it needs at least one")
    return examples


def _parse_record(record: Any, where: str) -> Example:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be an object, not {_kind(record)}")
    if "messages" in record:
        return _parse_chat(record["messages"], "messages", "role", "content", where)
    if "conversations" in record:
        return _parse_chat(record["conversations"], "conversations", "from", "value", where)
    instruction, output = _text(record, "instruction", where), _text(record, "output", where)
    if not instruction.strip():
        raise UserError(f"{where}: the instruction is empty; fill it in or remove the record")
    input = "" if record.get("input") is None else _text(record, "input", where)
    return Example.from_instruction(instruction, input, output)


def _parse_chat(turns: Any, column: str, role_key: str, text_key: str, where: str) -> Example:
    if not isinstance(turns, list) or len(turns) < 2:
        raise UserError(f"{where}: '{column}' must be a list of at least a question and an answer")
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        place = f"{where}, message {number}"
        if not isinstance(turn, dict):
            raise UserError(f"{place}: a message must be an object, not {_kind(turn)}")
        role = _text(turn, role_key, place)
        if role not in _ROLES:
            raise UserError(f"{place}: unknown {role_key} '{role}'; use one of {', '.join(_ROLES)}")
        messages.append({"role": _ROLES[role], "content": _text(turn, text_key, place)})
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last message is the {messages[-1]['role']}'s, not the assistant's")
    return Example(tuple(messages))


def _text(record: dict[str, Any], column: str, where: str) -> str:
    if column not in record:
        present = ", ".join(map(str, record)) or "nothing"
        raise UserError(f"{where}: no column '{column}' (it has: {present}); rename or add it")
    if not isinstance(record[column], str):
        raise UserError(f"{where}: '{column}' must be text, not {_kind(record[column])}")
    return record[column]


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids, attention mask (1 real, 0 padding) and labels (-100 untrained), each [B, L].

    position_ids: where each token is in its example, [B, L]; None: a row is one example.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    position_ids: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """A copy of the batch on `device`."""
        return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in vars(self).values()))


def collate(rows: Sequence[Row], pad_id: int, multiple: int = 8) -> Batch:
    """Pads rows of input_ids and labels to one length, a multiple of `multiple`; int64 tensors [B, L]."""
    longest = max(len(row["input_ids"]) for row in rows)
    shape = (len(rows), math.ceil(longest / multiple) * multiple)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        input_ids[i, :length] = torch.tensor(row["input_ids"])
        labels[i, :length] = torch.tensor(row["labels"])
        attention_mask[i, :length] = 1
    return Batch(input_ids, attention_mask, labels)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng([seed, epoch]).permutation(n).tolist())


@dataclass(frozen=True)
class GlobalOrder:
    """Which of `n` samples each optimizer step sees; a pure function of seed and step.

    Epochs are permutations laid end to end, so a step may end one epoch and begin the next, and no sample
    is left out. `global_batch` may exceed `n`.
    """

    n: int
    global_batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.n > 0 and self.global_batch > 0 and self.seed >= 0

    def indices(self, step: int) -> list[int]:
        """The `global_batch` sample indices of optimizer step `step`, counted from 0."""
        first = step * self.global_batch
        places = (divmod(place, self.n) for place in range(first, first + self.global_batch))
        return [_permutation(self.n, self.seed, epoch)[offset] for epoch, offset in places]

    def micro(self, step: int, micro: int, rank: int, world: int, per_device: int) -> list[int]:
        """The `per_device` indices that rank `rank` of `world` takes in micro-batch `micro` of the step."""
        first = (micro * world + rank) * per_device
        assert 0 <= rank < world and first + per_device <= self.global_batch
        return self.indices(step)[first : first + per_device]

    def steps(self, epochs: float) -> int:
        """Optimizer steps in which every sample is seen `epochs` times, rounded up."""
        return math.ceil(epochs * self.n / self.global_batch)
