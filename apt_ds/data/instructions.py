"""From examples to token rows: the prompt, the mask over it, and the split into training and held-out parts.

A tokenizer with a chat template gets the template; any other gets the Alpaca prompt. Only what the assistant
says is trained, its end-of-turn token included. Text is tokenized up to the start of each answer exactly as
it will be when generating: a token never spans the end of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jinja2
import numpy as np

from apt_ds.config import UserError
from apt_ds.data.base import Example, Message
from apt_ds.data.rows import IGNORED, Row, TokenizedSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Segment = tuple[str, bool]  # a piece of text, and whether it is trained

_REQUEST = "Write a response that appropriately completes the request.\n\n"
PREAMBLE = f"Below is an instruction that describes a task. {_REQUEST}"
PREAMBLE_WITH_INPUT = (
    f"Below is an instruction that describes a task, paired with an input that provides further context. {_REQUEST}"
)
SECTIONS = {"system": "{}\n\n", "user": "### Instruction:\n{}\n\n", "tool": "### Input:\n{}\n\n"}
RESPONSE = "### Response:"


def build_dataset(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedSet:
    """Encodes all examples; UserError when max_length (tokens) leaves nothing of any answer."""
    encoded = [encode(example, tokenizer, max_length) for example in examples]
    # a label in first place has no token before it to be predicted from
    rows = tuple(row for row in encoded if any(label != IGNORED for label in row["labels"][1:]))
    if not rows:
        shortest = min(len(prompt_ids(example, tokenizer)) for example in examples)
        reason = f"the shortest prompt alone takes {shortest} tokens"
        raise UserError(f"--max_seq_length {max_length} cuts off every answer ({reason}); raise it")
    return TokenizedSet.of(rows, len(encoded) - len(rows))


def split_held_out(examples: Sequence[Example], n: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Sets `n` examples aside: (train, held_out), chosen by `seed`, both in their original order."""
    if not 0 <= n < len(examples):
        raise UserError(
            f"--eval_size: cannot hold out {n} of {len(examples)} examples; give at most {len(examples) - 1}"
        )
    chosen = set(np.random.default_rng(seed).permutation(len(examples))[:n].tolist())
    train = [example for i, example in enumerate(examples) if i not in chosen]
    return train, [examples[i] for i in sorted(chosen)]


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Row:
    """Token ids and labels of one example, both of the same length, at most `max_length`.

    Cut from the right; when the answer lies wholly beyond the cut every label is -100.
    """
    ids, labels = _tokenize(_segments(example, tokenizer), tokenizer, _leading_ids(tokenizer))
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def render_prompt(example: Example | str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that asks for the last answer of `example`, or for an answer to a question given as text.

    Without the special tokens a tokenizer adds by itself; `prompt_ids` gives what a model should be fed.
    """
    if isinstance(example, str):
        example = Example.from_instruction(example)
    if tokenizer.chat_template:
        return _render(example.messages[:-1], tokenizer, ask=True)
    return "".join(text for text, _ in _plain_segments(example, _end_token(tokenizer))[:-1])


def prompt_ids(example: Example | str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of `render_prompt`, the same ids that training sees before the answer."""
    if isinstance(example, str):
        segments = [(render_prompt(example, tokenizer), False)]
    else:  # with the borders of the earlier answers, which no token spans either
        segments = _segments(example, tokenizer)
        while segments[-1][1]:
            segments.pop()
    return _tokenize(segments, tokenizer, _leading_ids(tokenizer))[0]


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


def _segments(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    eos = _end_token(tokenizer)
    if tokenizer.chat_template:
        return _chat_segments(example.messages, tokenizer, eos)
    return _plain_segments(example, eos)


def _plain_segments(example: Example, eos: str) -> list[Segment]:
    """The Alpaca prompt; a conversation repeats its sections turn by turn."""
    if example.instruction:
        prompt = PREAMBLE_WITH_INPUT if example.input else PREAMBLE
        prompt += SECTIONS["user"].format(example.instruction)
        prompt += SECTIONS["tool"].format(example.input) if example.input else ""
        return [(prompt + RESPONSE, False), (example.output + eos, True)]
    segments: list[Segment] = []
    prompt = "" if example.messages[0]["role"] == "system" else PREAMBLE
    for message in example.messages:
        if message["role"] == "assistant":
            segments += [(prompt + RESPONSE, False), (message["content"] + eos, True)]
            prompt = "\n\n"
        else:
            prompt += SECTIONS[message["role"]].format(message["content"])
    return segments


def _chat_segments(messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerBase, eos: str) -> list[Segment]:
    """Cuts the rendered conversation at the borders of its answers, found by rendering what comes before.

    Some templates write an earlier answer differently once a later one follows; such an answer is context
    and not trained.
    """
    whole = _render(messages, tokenizer)
    segments: list[Segment] = []
    done = 0
    for i, message in enumerate(messages):
        if i == 0 or message["role"] != "assistant":
            continue
        is_last = i == len(messages) - 1
        prompt = _render(messages[:i], tokenizer, ask=True)
        turn = whole if is_last else _render(messages[: i + 1], tokenizer)
        if turn.startswith(prompt) and whole.startswith(turn):
            end = len(turn.rstrip())  # generation stops before the blanks after the end-of-turn token
            segments += [(whole[done : len(prompt)], False), (whole[len(prompt) : end], True)]
            done = end
        elif is_last:
            return [(prompt, False), (message["content"] + eos, True)]
    answer = messages[-1]["content"].strip()
    if answer and whole[:done].endswith(answer):
        segments.append((eos, True))  # a template without an end of turn would never learn to stop
    return segments


def _render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, ask: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"the chat template refuses a conversation of {roles}: {error}") from error


def _tokenize(
    segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase, lead: list[int]
) -> tuple[list[int], list[int]]:
    """Ids and labels of the segments, each tokenized in the context of the text before it.

    Where tokenizing on would merge across a border, the ids before it stay and the text starts afresh.
    """

    def plain(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    ids, labels = list(lead), [IGNORED] * len(lead)
    fixed, text = list(lead), ""
    for piece, trained in segments:
        longer = fixed + plain(text + piece)
        if longer[: len(ids)] != ids:
            fixed, text = ids, ""
            longer = fixed + plain(piece)
        text += piece
        labels += longer[len(ids) :] if trained else [IGNORED] * (len(longer) - len(ids))
        ids = longer
    return ids, labels
