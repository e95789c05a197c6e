"""An Ollama Modelfile beside a GGUF file: the chat template in Go's template language, stop words, sampling.

llama.cpp reads the Jinja template from the GGUF file. Ollama wants a template in Go. Nothing translates Jinja, so the
template is asked: it renders conversations of known texts, and what lies between the texts is the format. The format
is then checked on other conversations. A template that is not regular in this way gets a comment instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from apt_ds.data.prompts import PREAMBLE, RESPONSE, SECTIONS

Conversation = tuple[tuple[str, str], ...]  # (role, text)
SYSTEM, USER, ANSWER, NEXT = "Qsystem", "Quser", "Qanswer", "Qnext"
DATE = "26 Jul 2024"  # what the templates of Llama 3 write where they are not given the day
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
TURNS: Conversation = (("user", USER), ("assistant", ANSWER), ("user", NEXT))
PROBES: tuple[Conversation, ...] = (TURNS[:1], TURNS, (*TURNS, ("assistant", "Qmore"), ("user", "Qlast")))


@dataclass(frozen=True)
class ChatFormat:
    """The text around the messages of a conversation.

    Attributes:
        before_user: before a question.
        between: from a question to its answer.
        after_answer: after an answer.
        prompt: after the last question.
        before_system, after_system: around a system message. None: the format has no system messages.
        joined: whether the system message takes the place of `before_user` of the first question.
        default: what conversations without a system message begin with.
    """

    before_user: str
    between: str
    after_answer: str
    prompt: str
    before_system: str | None = None
    after_system: str = ""
    joined: bool = False
    default: str = ""

    def render(self, messages: Conversation) -> str:
        """A conversation that ends with a question, as the template of `go` renders it."""
        system = messages[0][0] == "system"
        text = "" if system else self.default
        for index, (role, content) in enumerate(messages):
            if role == "system":
                text += f"{self.before_system or ''}{content}{self.after_system}"
            elif role == "user":
                text += ("" if self.joined and system and index == 1 else self.before_user) + content
            else:
                text += f"{self.between}{content}{self.after_answer}"
        return text + self.prompt

    def go(self) -> str:
        """The template in Go's language. Ollama gives `.System`, and `.Messages` with the system message first."""
        user = literal(self.before_user)
        if self.joined:
            user = f"{{{{ if not (and $.System (eq $i 1)) }}}}{user}{{{{ end }}}}"
        turn = '{{ if eq .Role "user" }}' + user + "{{ .Content }}"
        turn += '{{ else if eq .Role "assistant" }}' + literal(self.between) + "{{ .Content }}"
        turn += literal(self.after_answer)
        if self.before_system is not None:
            turn += '{{ else if eq .Role "system" }}' + literal(self.before_system) + "{{ .Content }}"
            turn += literal(self.after_system)
        loop = "{{ range $i, $message := .Messages }}" + turn + "{{ end }}{{ end }}"
        default = "{{ if not .System }}" + literal(self.default) + "{{ end }}" if self.default else ""
        return default + loop + literal(self.prompt)


def literal(text: str) -> str:
    """A text as an action of a Go template, or '' for none."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def alpaca(end: str) -> ChatFormat:
    """The prompt that this package trains on where a tokenizer has no chat template. end: the end token."""
    before, _, _ = SECTIONS["user"].partition("{}")
    answer = f"\n\n{RESPONSE}"
    return ChatFormat(before, answer, f"{end}\n\n", answer, "", "\n\n", default=PREAMBLE)


def format_of(tokenizer: PreTrainedTokenizerBase) -> ChatFormat | None:
    """The format of a tokenizer's chat template, None where the template is not regular."""
    if not tokenizer.chat_template:
        return alpaca(tokenizer.eos_token or "")
    system = (("system", SYSTEM),)
    try:
        chat = infer(tokenizer)
        regular = chat is not None and all(chat.render(probe) == rendered(tokenizer, probe) for probe in PROBES)
        if chat is not None and chat.before_system is not None:
            probes = [(*system, *probe) for probe in PROBES]
            regular = regular and all(chat.render(probe) == rendered(tokenizer, probe) for probe in probes)
    except (TemplateError, ValueError):
        return None
    return chat if regular else None


def infer(tokenizer: PreTrainedTokenizerBase) -> ChatFormat | None:
    """The format between known texts. Raises ValueError where a text is missing or comes twice."""
    opening, prompt = rendered(tokenizer, TURNS[:1]).split(USER)
    _, rest = rendered(tokenizer, TURNS).split(USER)
    between, rest = rest.split(ANSWER)
    middle, _ = rest.split(NEXT)
    _, after_answer = rendered(tokenizer, TURNS[:2], prompt=False).split(ANSWER)
    before_user = middle.removeprefix(after_answer)
    default = opening.removesuffix(before_user)
    try:
        text = rendered(tokenizer, (("system", SYSTEM), *TURNS[:1]))
    except TemplateError:  # the template refuses system messages
        return ChatFormat(before_user, between, after_answer, prompt, default=default)
    before_system, rest = text.split(SYSTEM)
    after_system, _ = rest.split(USER)
    joined = not after_system.endswith(before_user)
    after_system = after_system if joined else after_system.removesuffix(before_user)
    return ChatFormat(before_user, between, after_answer, prompt, before_system, after_system, joined, default)


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Conversation, prompt: bool = True) -> str:
    """A conversation as the tokenizer's template renders it, without the token that llama.cpp puts first itself."""
    turns = [{"role": role, "content": text} for role, text in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, date_string=DATE)
    assert isinstance(text, str)
    return text.removeprefix(tokenizer.bos_token) if begins_with_bos(tokenizer) else text


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts the token for the beginning before each text."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def modelfile(folder: Path, file: str, context: int) -> tuple[str, list[str]]:
    """An Ollama Modelfile.

    Args:
        folder: the model folder.
        file: the name of the GGUF file beside it.
        context: tokens for which llama.cpp gives the answers of the model, 0 for all.

    Returns:
        Its text, and warnings.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    lines, warnings = [f"FROM ./{file}"], []
    chat = format_of(tokenizer)
    if chat is None:
        warnings.append("Ollama: the chat template has no known form in Go. Write TEMPLATE in the Modelfile by hand")
        lines.append("# The chat template of the GGUF file has no known form in Go. Write TEMPLATE here by hand.")
    else:
        lines.append(f'TEMPLATE """{chat.go()}"""')
    lines += [f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in stop_tokens(tokenizer, chat)]
    lines += sampling(folder)
    if context:
        lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join(lines) + "\n", warnings


def stop_tokens(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat | None) -> list[str]:
    """The tokens that end an answer: the end token, and special ones right after an answer."""
    after = chat.after_answer if chat else ""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token) in after]
    return list(dict.fromkeys([*([tokenizer.eos_token] if tokenizer.eos_token else []), *special]))


def sampling(folder: Path) -> list[str]:
    """The sampling parameters of generation_config.json."""
    try:
        settings: dict[str, Any] = json.loads((folder / "generation_config.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return []
    return [f"PARAMETER {name} {settings[key]}" for key, name in SAMPLING.items() if settings.get(key) is not None]
