"""A tokenizer's chat template: what it makes of a conversation at one moment, and what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
from transformers.utils import chat_template_utils

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import Example
from apt_ds.data.turns import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# a template is code of the model's author: these are its mistakes, or its refusals
FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
CLOCK = "strftime_now"  # the function by which a template reads the time
ADVICE = "Give a model whose chat template does, or remove them"


def render(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    now: datetime | None = None,
    upto: int | None = None,
    ask: bool = False,
) -> str:
    """The text of the messages before index `upto`, with the start of an answer where `ask` says so.

    now: what the template's `strftime_now` reads instead of the host's clock.

    Raises:
        UserError: the template refuses the conversation. The message names the record, and the template's reason.
    """
    messages = list(example.messages[:upto])
    # dict is invariant: the method takes dict[Any, Any]
    tools: list[Any] | None = list(example.tools) or None
    try:
        template = tokenizer.get_chat_template(tools=tools)
        with nullcontext() if now is None or CLOCK not in template else _clock(template, now):
            if tools is None and _is_plain(messages):
                return _rendered(template, messages, tokenizer, ask)
            # text, since it is not tokenized
            return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=ask))
    except jinja2.TemplateSyntaxError as error:
        problem = f"is not valid Jinja (line {error.lineno}: {_line(error)}). Correct it"
        raise UserError(f"the chat template of {_name(tokenizer)} {problem}") from error
    except FAILURES as error:
        roles = ", ".join(message["role"] for message in messages)
        refusal = f"the chat template refuses a conversation of {roles}: {_line(error)}"
        raise UserError(f"{_place(example)}{refusal}") from error


def _is_plain(messages: list[Message]) -> bool:
    """Whether messages have a role and a text alone, so that nothing is to be done with them before rendering."""
    return bool(messages) and all(len(message) == 2 and "content" in message for message in messages)


def _rendered(template: str, messages: list[Message], tokenizer: PreTrainedTokenizerBase, ask: bool) -> str:
    """What `apply_chat_template` returns for plain messages, without its work on every call."""
    # a clock is a function of the moment
    compiled, functions = (_compiled.__wrapped__ if CLOCK in template else _compiled)(template)
    names = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": ask}
    context = compiled.new_context({**functions, **names, **tokenizer.special_tokens_map}, shared=True)
    return "".join(compiled.root_render_func(context))


@lru_cache(maxsize=8)
def _compiled(template: str) -> tuple[jinja2.Template, dict[str, Any]]:
    """A template and the functions that it may call.

    `jinja2.Template.render` looks for them in a chain of dictionaries, which takes a third of its time.
    """
    compiled, functions = chat_template_utils._compile_jinja_template(template), {}
    for some in reversed(getattr(compiled.globals, "maps", [compiled.globals])):
        functions.update(some)
    return compiled, functions


@contextmanager
def _clock(template: str, now: datetime) -> Iterator[None]:
    """Have `strftime_now` of this template tell the time `now`.

    transformers caches compiled templates, and replaces functions among the variables of a template by their names.
    So the function must be set in the compiled template.
    """
    names = chat_template_utils._compile_jinja_template(template).globals
    usual = names[CLOCK]
    names[CLOCK] = now.strftime
    try:
        yield
    finally:
        names[CLOCK] = usual


def fitted(example: Example, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None) -> Example:
    """The example, with the arguments of tool calls in the form that the template writes: an object, or its JSON.

    Raises:
        UserError: the template leaves out tools, calls or results. The message names record and fields.
    """
    if not _has_tools(example):
        return example
    forms = [example, _with_arguments_as_text(example)] if _calls(example) else [example]
    missing: list[str] = []
    refusal: UserError | None = None
    for form in forms:
        marked, marks = _marked(form)
        try:
            text = render(marked, tokenizer, now)
        except UserError as error:
            refusal = refusal or error
            continue
        # an object that is written as Python writes it is no JSON: such a template expects text
        if form is example and any(f"{{'{mark}'" in text for mark in marks):
            continue
        left_out = list(dict.fromkeys(field for mark, field in marks.items() if mark not in text))
        if not left_out:
            return form
        missing = missing or left_out
    if not missing and refusal is not None:
        raise refusal
    fields = ", ".join(missing[:4]) or "'tool_calls' as JSON"
    raise UserError(f"{_place(example)}the chat template of {_name(tokenizer)} does not write {fields}. {ADVICE}")


def check_system(example: Example, whole: str, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None) -> None:
    """Raise UserError where `whole`, the rendered conversation, lacks a system message."""
    system_texts = [message["content"].strip() for message in example.messages if message["role"] == "system"]
    if all(text in whole for text in system_texts):
        return
    marked, marks = _marked(example)
    text = render(marked, tokenizer, now)
    if any(field.endswith("'system'") and mark not in text for mark, field in marks.items()):
        name = _name(tokenizer)
        raise UserError(f"{_place(example)}the chat template of {name} does not write the system message. {ADVICE}")


def refuse_calls(example: Example) -> None:
    """Raise UserError where an example has tools or calls, which the Alpaca prompt has no place for."""
    fields = ["'tools'"] if example.tools else []
    fields += ["'tool_calls'"] if _calls(example) else []
    if fields:
        problem = f"the tokenizer has no chat template, so {' and '.join(fields)} cannot be written"
        raise UserError(f"{_place(example)}{problem}. {ADVICE}")


def refuse_apart(example: Example) -> None:
    """Raise UserError where the last answer calls tools, and the template does not write it after its own prompt."""
    if "tool_calls" in example.messages[-1]:
        problem = "the chat template does not write the last call after its generation prompt"
        raise UserError(f"{_place(example)}{problem}. {ADVICE}")


def ends_turn(message: Message, text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `text`, which ends with the answer `message`, has something that ends the turn."""
    if "tool_calls" in message:
        special = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        return text.endswith(special)
    answer = message["content"].strip()
    return not (answer and text.endswith(answer))


def _has_tools(example: Example) -> bool:
    return bool(example.tools) or any(m["role"] == "tool" or "tool_calls" in m for m in example.messages)


def _calls(example: Example) -> bool:
    return any("tool_calls" in message for message in example.messages)


def _with_arguments_as_text(example: Example) -> Example:
    def written(call: Message) -> Message:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return call | {"function": call["function"] | {"arguments": arguments}}

    messages = [
        message | {"tool_calls": [written(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in example.messages
    ]
    return replace(example, messages=tuple(messages))


def _marked(example: Example) -> tuple[Example, dict[str, str]]:
    """The example with a word of its own for everything a template must write, and what each word is for."""
    marks: dict[str, str] = {}

    def mark(what: str) -> str:
        marks[f"zq{len(marks)}x"] = what
        return list(marks)[-1]

    def called(call: Message, what: str) -> Message:
        arguments = {mark(what): mark(what)}
        as_text = isinstance(call["function"]["arguments"], str)
        marked = {"name": mark(what), "arguments": json.dumps(arguments) if as_text else arguments}
        return call | {"function": marked}

    tools = [tool | {"function": tool["function"] | {"name": mark("'tools'")}} for tool in example.tools]
    messages: list[Message] = []
    for number, message in enumerate(example.messages, start=1):
        if message["role"] in ("system", "tool"):
            message = message | {"content": mark(f"message {number} of role '{message['role']}'")}
        elif "tool_calls" in message:
            what = f"'tool_calls' of message {number}"
            message = message | {"tool_calls": [called(call, what) for call in message["tool_calls"]]}
        messages.append(message)
    return replace(example, messages=tuple(messages), tools=tuple(tools)), marks


def _place(example: Example) -> str:
    return f"{example.where}: " if example.where else ""


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "the model"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
