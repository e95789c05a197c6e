"""Hashes of the ids and labels of recorded examples, by format, template and tokenizer.

`python -m tests.support.golden_rows` writes the hashes again. Do so only where a row changes on purpose.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from apt_ds.config.errors import UserError
from apt_ds.data import glue, seq2seq, squad
from apt_ds.data.conversations import load_examples
from apt_ds.data.instructions import build_dataset
from apt_ds.data.tokenized import Row
from tests.support import tiny
from tests.support.text_fixtures import pair_tokenizer

PATH = Path(__file__).with_name("golden_rows.json")
ROWS = 200
DIGITS = 6  # hexadecimal digits of the hash of one row
NOW = datetime(2024, 2, 29, 12, 30)

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = (
    "{{ bos_token }}" + _HEADER.format("system") + "Today Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}"
    "{% for tool in tools or [] %}\n{{ tool | tojson(indent=4) }}{% endfor %}<|eot_id|>"
    "{% for m in messages %}{% if m.role != 'system' %}"
    + _HEADER.format("{{ m.role if m.role != 'tool' else 'ipython' }}")
    + "{% for call in m.tool_calls or [] %}"
    '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% endfor %}'
    "{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + _HEADER.format("assistant") + "{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% set last = namespace(system=first) %}"
    "{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ last.system }}{{ m.content }}[/INST]"
    "{% set last.system = '' %}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
    "{% elif m.tool_calls %}[TOOL_CALLS] {% for c in m.tool_calls %}{{ c.function.name }} "
    "{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# marks what the assistant says, and writes no thoughts of earlier answers
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = (
    *("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    "[/TOOL_RESULTS]",
)
_WORDS = (
    "the cat sees Red. Blue, number 17 3.14 naïve Köln 東京 🙂 It's don't hello, there\n \n\n  two  spaces\ttab "
    "assistant user system ### Response: Input: </think> {json} [x] a I we've 2024-05-06 WORLD camelCase é\u0301 ... --"
).split(" ")


def words(draw: random.Random, most: int, blanks: bool = False) -> str:
    """A text of words, with blanks at its ends where `blanks` allows."""
    text = " ".join(draw.choice(_WORDS) for _ in range(draw.randint(1, most)))
    text = text if text.strip() else f"{text}cat"
    if blanks and draw.random() < 0.3:
        return draw.choice(["\n", "  ", "\n\n", " "]) + text
    return text + draw.choice(["", "", "", "\n", " "]) if blanks else text


def alpaca(draw: random.Random) -> dict[str, Any]:
    """An instruction record, sometimes with a system prompt, or earlier pairs."""
    record: dict[str, Any] = {"instruction": words(draw, 12, True), "output": words(draw, 30, True)}
    if draw.random() < 0.5:
        record["input"] = draw.choice(["", words(draw, 10)])
    if draw.random() < 0.2:
        record["system"] = words(draw, 6)
    if draw.random() < 0.2:
        record["history"] = [[words(draw, 6), words(draw, 6, True)] for _ in range(draw.randint(1, 3))]
    return record


def chat(draw: random.Random) -> dict[str, Any]:
    """A conversation of one to four questions, in either layout, sometimes with answers that are context only."""
    turns = [{"role": "system", "content": words(draw, 8)}] if draw.random() < 0.3 else []
    for _ in range(draw.randint(1, 4)):
        turns.append({"role": "user", "content": words(draw, 10, True)})
        turns.append({"role": "assistant", "content": words(draw, 20, True)})
        if draw.random() < 0.15:
            turns[-1]["content"] = f"<think>{words(draw, 3)}</think>{turns[-1]['content']}"
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    for answer in answers[:-1]:
        if draw.random() < 0.2:
            answer["weight"] = 0
    if draw.random() < 0.5:
        return {"messages": turns}
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {
        "conversations": [{"from": names[turn.pop("role")], "value": turn.pop("content"), **turn} for turn in turns]
    }


def calling(draw: random.Random) -> dict[str, Any]:
    """A conversation with tools, a call, its result and an answer."""
    tool = {"name": "weather", "description": words(draw, 4), "parameters": {"type": "object", "properties": {}}}
    call = {"name": "weather", "arguments": {"town": words(draw, 2), "days": draw.randint(1, 9)}}
    turns = [
        {"role": "user", "content": words(draw, 8)},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": words(draw, 5), "name": "weather"},
        {"role": "assistant", "content": words(draw, 10)},
    ]
    return {"tools": [tool], "messages": turns}


def bpe(form: str, template: str | None, bos: bool = False) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of the words. form: `bytes` merges across blanks, `split` does not, `blanks` is as Llama 2."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=form == "blanks", fuse_unk=form == "blanks"))
    alphabet = sorted({character for word in _WORDS for character in word})
    if form == "blanks":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        inner.decoder = decoders.Sequence(parts)
        special = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=form == "split")
        inner.decoder = decoders.ByteLevel()
        alphabet, special = pre_tokenizers.ByteLevel.alphabet(), list(_SPECIAL)
    draw = random.Random(7)
    lines = [words(draw, 12) for _ in range(200)] + ["### Response:\n\nthe cat", "assistant\n\nBlue"] * 9
    inner.train_from_iterator(
        lines,
        trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if bos:
        place = inner.token_to_id("<s>")
        inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", place)])
    end = "<|im_end|>" if template in (CHATML, MARKED) else "<|eot_id|>" if template == LLAMA3 else "</s>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token=end, unk_token="<unk>")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token, normalized=False) for token in _SPECIAL[3:]]}
    )
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": lambda: bpe("split", CHATML),
    "chatml, merging": lambda: bpe("bytes", CHATML),
    "llama3": lambda: bpe("split", LLAMA3, bos=True),
    "mistral": lambda: bpe("blanks", MISTRAL, bos=True),
    "marked": lambda: bpe("bytes", MARKED),
    "none": lambda: bpe("blanks", None, bos=True),
    "none, merging": lambda: bpe("bytes", None),
}
LENGTHS = {"alpaca": 160, "chat": 160, "calling": 400}  # some rows are cut
FORMATS: dict[str, Callable[[random.Random], dict[str, Any]]] = {"alpaca": alpaca, "chat": chat, "calling": calling}


def conversations(folder: Path, form: str) -> str:
    """The path of a file with the records of one format."""
    draw = random.Random(f"golden {form}")
    path = folder / f"{form}.jsonl"
    path.write_text("\n".join(json.dumps(FORMATS[form](draw)) for _ in range(ROWS)), "utf-8")
    return str(path)


def hashed(rows: Sequence[Row]) -> str:
    """The hashes of all rows, one after the other."""
    return "".join(hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:DIGITS] for row in rows)


def outcome(make: Callable[[], Sequence[Row]]) -> str:
    """The hashes of the rows, or the text of the error."""
    try:
        return hashed(make())
    except UserError as error:
        return str(error).rsplit("/", 1)[-1]


def pairs(folder: Path) -> Iterator[tuple[str, Callable[[], Sequence[Row]]]]:
    """Name and maker of the rows of the other tasks."""
    draw, vocabulary = random.Random(3), [*tiny.WORDS, "W1", "w2,", "unknown"]

    def text(most: int) -> str:
        return " ".join(draw.choice(vocabulary) for _ in range(draw.randint(1, most)))

    mnli = [glue.Pair(text(20), text(20), draw.randrange(3), "") for _ in range(ROWS)]
    scored = [glue.Pair(text(9), text(9), round(draw.uniform(0, 5), 2), "") for _ in range(ROWS)]
    single = [glue.Pair(text(30), "", draw.randrange(2), "") for _ in range(ROWS)]
    for name, given in (("mnli", mnli), ("stsb", scored), ("sst2", single)):
        yield name, lambda given=given: list(glue.encode(given, pair_tokenizer(), 24))  # type: ignore[misc]
    questions = []
    for number in range(ROWS):
        context = text(60)
        start = draw.randrange(len(context))
        answer = context[start : start + draw.randint(1, 12)]
        answers = ((answer, start),) if draw.random() < 0.8 else ()
        questions.append(squad.Question(str(number), "", context, text(8), answers))
    yield "squad", lambda: list(squad.encode(questions, pair_tokenizer(), 32, 8))
    texts = [seq2seq.Exchange(text(40), text(12), "") for _ in range(ROWS)]
    yield "text", lambda: list(seq2seq.encode(texts, tiny.tokenizer(), 24, 8))


def record() -> dict[str, str]:
    """The outcome of every format, template and tokenizer."""
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        examples = {form: load_examples(conversations(folder, form)) for form in FORMATS}
        for template, make in TOKENIZERS.items():
            tokenizer = make()
            for form, given in examples.items():
                length = LENGTHS[form]
                outcomes[f"{form}, {template}"] = outcome(
                    lambda: list(build_dataset(given, tokenizer, length, NOW))  # noqa: B023
                )
        for task, rows in pairs(folder):
            outcomes[task] = outcome(rows)
    return outcomes


if __name__ == "__main__":
    PATH.write_text(json.dumps(record(), indent=1, ensure_ascii=False) + "\n", "utf-8")
