"""From examples to token rows: the prompt, the mask over it, and the split into training and held-out parts.

A tokenizer with a chat template gets the template; any other gets the Alpaca prompt. Only what the assistant
says is trained, its end-of-turn token included. Text is tokenized up to the start of each answer exactly as
it will be when generating: a token never spans the end of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from apt_ds.config.errors import UserError
from apt_ds.data import templates
from apt_ds.data.conversations import Example, read_examples
from apt_ds.data.recipe import Recipe
from apt_ds.data.segments import SegmentTokenizer
from apt_ds.data.tokenized import IGNORED, Row, TokenizedSet
from apt_ds.data.tokenizer_identity import tokenizer_identity, written_times

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Segment = tuple[str, int | None]  # a piece of text, and the index of the message it is the answer of (None: prompt)

_REQUEST = "Write a response that appropriately completes the request.\n\n"
PREAMBLE = f"Below is an instruction that describes a task. {_REQUEST}"
PREAMBLE_WITH_INPUT = (
    f"Below is an instruction that describes a task, paired with an input that provides further context. {_REQUEST}"
)
SECTIONS = {"system": "{}\n\n", "user": "### Instruction:\n{}\n\n", "tool": "### Input:\n{}\n\n"}
RESPONSE = "### Response:"


def build_dataset(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None
) -> TokenizedSet:
    """Encodes all examples; UserError when max_length (tokens) leaves nothing of any answer.

    now: the time that a chat template writes; None takes this host's clock for each example.
    """
    encoded = encode_many(examples, tokenizer, max_length, now)
    rows = tuple(row for row in encoded if is_trained(row))
    if not rows:
        raise every_answer_cut(examples, tokenizer, max_length, now)
    return TokenizedSet.of(rows, len(encoded) - len(rows))


def is_trained(row: Row) -> bool:
    """Whether any token of a row is trained."""
    # a label in first place has no token before it to be predicted from
    return any(label != IGNORED for label in row["labels"][1:])


def every_answer_cut(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None
) -> UserError:
    """The error of a length that leaves nothing of any answer."""
    shortest = min(len(prompt_ids(example, tokenizer, now)) for example in examples)
    reason = f"the shortest prompt alone takes {shortest} tokens"
    return UserError(f"--max_seq_length {max_length} cuts off every answer ({reason}); raise it")


def instruction_recipe(
    tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None
) -> Recipe[Example]:
    """How conversations become rows: see `encode_many`."""
    options = {
        "task": "instructions",
        "tokenizer": tokenizer_identity(tokenizer),
        "times": written_times(tokenizer, now),
        "max_length": max_length,
    }
    encoder = InstructionEncoder(tokenizer, max_length, now)
    return Recipe(read_examples, encoder, dump_example, load_example, options, is_trained)


def dump_example(example: Example) -> tuple[Any, str]:
    """An example as JSON can write it, and its place."""
    texts = [example.messages, example.instruction, example.input, example.tools]
    return [*texts, sorted(example.untrained), example.unfinished], example.where


def load_example(parts: Any, where: str) -> Example:
    """The example of what `dump_example` gave."""
    messages, instruction, input, tools, untrained, unfinished = parts
    return Example(tuple(messages), instruction, input, tuple(tools), frozenset(untrained), where, unfinished)


def split_held_out(examples: Sequence[Example], n: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Sets `n` examples aside: (train, held_out), chosen by `seed`, both in their original order."""
    train, held_out = held_out_numbers(len(examples), n, seed)
    return [examples[i] for i in train], [examples[i] for i in held_out]


def held_out_numbers(total: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the examples to train on and of the `n` held out, of `total`, see `split_held_out`."""
    if n and total == 1:
        raise UserError(
            "--eval_size: the data has only one example, so none can be held out; add examples or give --eval_data_path"
        )
    if not 0 <= n < total:
        raise UserError(f"--eval_size: cannot hold out {n} of {total} examples; give at most {total - 1}")
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).permutation(total)[:n]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None) -> Row:
    """Token ids and labels of one example, see `encode_many`."""
    return encode_many([example], tokenizer, max_length, now)[0]


def encode_many(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None
) -> list[Row]:
    """Token ids and labels of examples, both of the same length, at most `max_length`.

    Cut from the right; when the answer lies wholly beyond the cut every label is -100. Answers of
    `Example.untrained` have labels of -100 too. No end of turn follows the last answer of `Example.unfinished`.
    """
    return InstructionEncoder(tokenizer, max_length, now)(examples)


class InstructionEncoder:
    """Makes rows of examples. Keep it for many calls: it remembers what the tokenizer makes of common texts.

    now: the time that a chat template writes; None takes this host's clock for each example.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, now: datetime | None = None) -> None:
        self.tokenizer, self.max_length, self.now = tokenizer, max_length, now
        self.tokenize = SegmentTokenizer(tokenizer, _leading_ids(tokenizer))

    def __call__(self, examples: Sequence[Example]) -> list[Row]:
        """The rows of some examples."""
        pieces = []
        for example in examples:
            segments = _segments(example, self.tokenizer, self.now)
            pieces.append([(text, answer is not None and answer not in example.untrained) for text, answer in segments])
        return [
            {"input_ids": ids[: self.max_length], "labels": labels[: self.max_length]}
            for ids, labels in self.tokenize(pieces)
        ]


def render_prompt(example: Example | str, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None) -> str:
    """The text that asks for the last answer of `example`, or for an answer to a question given as text.

    Without the special tokens a tokenizer adds by itself; `prompt_ids` gives what a model should be fed.
    """
    if isinstance(example, str):
        example = Example.from_instruction(example)
    if tokenizer.chat_template:
        return templates.render(templates.fitted(example, tokenizer, now), tokenizer, now, upto=-1, ask=True)
    return "".join(text for text, _ in _plain_segments(example, _end_token(tokenizer))[:-1])


def prompt_ids(example: Example | str, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None) -> list[int]:
    """Token ids of `render_prompt`, the same ids that training sees before the answer."""
    if isinstance(example, str):
        pieces = [(render_prompt(example, tokenizer, now), False)]
    else:  # with the borders of the earlier answers, which no token spans either
        segments = _segments(example, tokenizer, now)
        while segments[-1][1] is not None:
            segments.pop()
        pieces = [(text, False) for text, _ in segments]
    return SegmentTokenizer(tokenizer, _leading_ids(tokenizer))([pieces])[0][0]


def resolve_pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: the pad token, else the end token, since padding is masked anyway."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    _end_token(tokenizer)
    return tokenizer.eos_token_id


def _end_token(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no end-of-sequence token; "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer.eos_token


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning token, where there is no template to write it and the tokenizer would add it itself."""
    if tokenizer.chat_template or tokenizer.bos_token_id is None:
        return []
    first = tokenizer("")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def _segments(example: Example, tokenizer: PreTrainedTokenizerBase, now: datetime | None) -> list[Segment]:
    eos = _end_token(tokenizer)
    if tokenizer.chat_template:
        return _chat_segments(templates.fitted(example, tokenizer, now), tokenizer, eos, now)
    return _plain_segments(example, eos)


def _plain_segments(example: Example, eos: str) -> list[Segment]:
    """The Alpaca prompt; a conversation repeats its sections turn by turn."""
    templates.refuse_calls(example)
    if example.instruction:
        prompt = PREAMBLE_WITH_INPUT if example.input else PREAMBLE
        prompt += SECTIONS["user"].format(example.instruction)
        prompt += SECTIONS["tool"].format(example.input) if example.input else ""
        end = "" if example.unfinished else eos
        return [(prompt + RESPONSE, None), (example.output + end, len(example.messages) - 1)]
    segments: list[Segment] = []
    prompt = "" if example.messages[0]["role"] == "system" else PREAMBLE
    for i, message in enumerate(example.messages):
        if message["role"] == "assistant":
            end = "" if example.unfinished and i == len(example.messages) - 1 else eos
            segments += [(prompt + RESPONSE, None), (message["content"] + end, i)]
            prompt = "\n\n"
        else:
            prompt += SECTIONS[message["role"]].format(message["content"])
    return segments


def _chat_segments(
    example: Example, tokenizer: PreTrainedTokenizerBase, eos: str, now: datetime | None
) -> list[Segment]:
    """Cuts the rendered conversation at the borders of its answers, found by rendering what comes before.

    Some templates write an earlier answer differently once a later one follows; such an answer is context
    and not trained.
    """
    whole = templates.render(example, tokenizer, now)
    templates.check_system(example, whole, tokenizer, now)
    segments: list[Segment] = []
    done, last = 0, len(example.messages) - 1
    for i, message in enumerate(example.messages):
        if i == 0 or message["role"] != "assistant":
            continue
        prompt = templates.render(example, tokenizer, now, upto=i, ask=True)
        if i == last and example.unfinished:
            return [*_before(prompt, segments, whole[:done]), (message["content"], i)]
        turn = whole if i == last else templates.render(example, tokenizer, now, upto=i + 1)
        if turn.startswith(prompt) and whole.startswith(turn):
            end = len(turn.rstrip())  # generation stops before the blanks after the end-of-turn token
            segments += [(whole[done : len(prompt)], None), (whole[len(prompt) : end], i)]
            done = end
        elif i == last:
            templates.refuse_apart(example)
            return [(prompt, None), (message["content"] + eos, i)]
    if not templates.ends_turn(example.messages[-1], whole[:done], tokenizer):
        segments.append((eos, last))  # a template without an end of turn would never learn to stop
    return segments


def _before(prompt: str, segments: list[Segment], done: str) -> list[Segment]:
    """The segments of `prompt`, of which `segments` covers the beginning `done` where the template writes it so."""
    return [*segments, (prompt[len(done) :], None)] if prompt.startswith(done) else [(prompt, None)]
