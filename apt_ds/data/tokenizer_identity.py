"""What of a tokenizer decides the rows that it makes, as a hash."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
from transformers.utils import chat_template_utils

from apt_ds.data.templates import CLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary, the rules, the special tokens and the chat template."""
    if tokenizer.is_fast:
        rules: Any = tokenizer.backend_tokenizer.to_str()
        for name in ("truncation", "padding"):  # which calls of the tokenizer change
            rules = _without(rules, name)
    else:
        rules = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__qualname__}
        rules |= {"options": repr(sorted(tokenizer.init_kwargs.items(), key=lambda item: item[0]))}
    facts = [
        rules,
        sorted(tokenizer.special_tokens_map.items()),
        tokenizer.chat_template,
        list(tokenizer.model_input_names),
        bool(getattr(tokenizer, "split_special_tokens", False)),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _without(text: str, name: str) -> str:
    """The text of a JSON object without the value of a name, the first of that name in the text."""
    start = text.index(f'"{name}":') + len(name) + 3
    end = json.JSONDecoder().raw_decode(text, start)[1]
    return text[:start] + text[end:]


def written_times(tokenizer: PreTrainedTokenizerBase, now: datetime | None) -> list[str]:
    """What a chat template may write of the time `now`: nothing for most templates, the date for others.

    A format that is not a constant of the template gives the whole time.
    """
    templates = tokenizer.chat_template or ""
    parts = templates.values() if isinstance(templates, dict) else [templates]
    times: set[str] = set()
    for template in parts:
        if CLOCK not in template:
            continue
        try:
            tree = chat_template_utils._compile_jinja_template(template).environment.parse(template)
        except jinja2.TemplateError:
            return [str(now)]
        calls = [call for call in tree.find_all(jinja2.nodes.Call) if getattr(call.node, "name", "") == CLOCK]
        formats = [call.args[0].value for call in calls if call.args and isinstance(call.args[0], jinja2.nodes.Const)]
        if len(formats) < template.count(CLOCK) or now is None:
            return [str(now)]
        times |= {now.strftime(written) for written in formats}
    return sorted(times)
