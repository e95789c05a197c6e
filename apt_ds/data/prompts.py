"""The text of a conversation, cut at the borders of its answers, and the prompt before an answer.

A tokenizer with a chat template gets the template. Any other gets the Alpaca prompt.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from apt_ds.data import templates
from apt_ds.data.conversations import Example
from apt_ds.data.segments import SegmentTokenizer
from apt_ds.data.special_tokens import end_token, leading_ids

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


def render_prompt(example: Example | str, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None) -> str:
    """The text that asks for the last answer of `example`, or for an answer to a question given as text.

    Without the special tokens a tokenizer adds by itself. `prompt_ids` gives the tokens for a model.
    """
    if isinstance(example, str):
        example = Example.from_instruction(example)
    if tokenizer.chat_template:
        return templates.render(templates.fitted(example, tokenizer, now), tokenizer, now, upto=-1, ask=True)
    return "".join(text for text, _ in _plain_segments(example, end_token(tokenizer))[:-1])


def prompt_ids(example: Example | str, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None) -> list[int]:
    """Token ids of `render_prompt`, the same ids that training sees before the answer."""
    if isinstance(example, str):
        pieces = [(render_prompt(example, tokenizer, now), False)]
    else:  # with the borders of the earlier answers, which no token spans either
        segments = segments_of(example, tokenizer, now)
        while segments[-1][1] is not None:
            segments.pop()
        pieces = [(text, False) for text, _ in segments]
    return SegmentTokenizer(tokenizer, leading_ids(tokenizer))([pieces])[0][0]


def segments_of(example: Example, tokenizer: PreTrainedTokenizerBase, now: datetime | None) -> list[Segment]:
    """The text of an example in pieces, each with the index of the message that it answers as (None: prompt)."""
    eos = end_token(tokenizer)
    if tokenizer.chat_template:
        return _chat_segments(templates.fitted(example, tokenizer, now), tokenizer, eos, now)
    return _plain_segments(example, eos)


def _plain_segments(example: Example, eos: str) -> list[Segment]:
    """The Alpaca prompt. A conversation repeats its sections turn by turn."""
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
