"""Chat templates become templates in Go that render the same text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from apt_ds.data.conversations import Example
from apt_ds.data.prompts import render_prompt
from apt_ds.models.export import ollama
from tests.support import tiny

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ (first if loop.first else '') + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
COUNTS = "{% for m in messages %}{{ loop.index ~ m['role'] ~ m['content'] }}{% endfor %}"
FORGETS = "{{ messages[-1]['content'] }}"
REGULAR = {"ChatML": CHATML, "Llama 3": LLAMA3, "Mistral": MISTRAL, "Gemma": GEMMA}
DIALOGUE = (("user", "One?"), ("assistant", "Two."), ("user", "Three?"))


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that begins each text with <s> itself where its template does."""
    loaded = tiny.tokenizer()
    loaded.chat_template = template
    if template.startswith("{{ bos_token }}"):
        begin = [("<s>", loaded.convert_tokens_to_ids("<s>"))]
        loaded.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=begin)
    return loaded


@pytest.mark.parametrize("name", REGULAR)
def test_the_format_renders_what_the_template_renders(name: str) -> None:
    loaded = tokenizer(REGULAR[name])
    chat = ollama.format_of(loaded)
    assert chat is not None and (chat.before_system is None) == (name == "Mistral")
    for conversation in (DIALOGUE[:1], DIALOGUE, (("system", "Now."), *DIALOGUE)):
        if conversation[0][0] == "system" and name == "Mistral":
            continue
        turns = [{"role": role, "content": text} for role, text in conversation]
        expected = loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert (
            chat.render(conversation) == ollama.rendered(loaded, conversation) and chat.render(conversation) in expected
        )


def test_templates_in_go() -> None:
    """The text of each action is a literal of Go, so that no brace or quote of a template is taken for code."""
    chat = ollama.format_of(tokenizer(GEMMA))
    assert chat is not None and chat.joined
    assert chat.go() == (
        '{{ range $i, $message := .Messages }}{{ if eq .Role "user" }}'
        '{{ if not (and $.System (eq $i 1)) }}{{ "<start_of_turn>user\\n" }}{{ end }}{{ .Content }}'
        '{{ else if eq .Role "assistant" }}{{ "<end_of_turn>\\n<start_of_turn>model\\n" }}{{ .Content }}'
        '{{ "<end_of_turn>\\n" }}{{ else if eq .Role "system" }}{{ "<start_of_turn>user\\n" }}{{ .Content }}'
        '{{ "\\n\\n" }}{{ end }}{{ end }}{{ "<end_of_turn>\\n<start_of_turn>model\\n" }}'
    )
    chatml = ollama.format_of(tokenizer(CHATML))
    assert chatml is not None
    assert chatml.go().startswith('{{ if not .System }}{{ "<|im_start|>system\\nBe kind<|im_end|>\\n" }}{{ end }}')


@pytest.mark.parametrize("template", [COUNTS, FORGETS])
def test_an_irregular_template_is_a_comment_and_a_warning(template: str, tmp_path: Path) -> None:
    assert ollama.format_of(tokenizer(template)) is None
    tokenizer(template).save_pretrained(tmp_path)
    text, warnings = ollama.modelfile(tmp_path, "m.gguf", 0)
    assert len(warnings) == 1 and "TEMPLATE" in warnings[0]
    assert 'TEMPLATE "' not in text and any(line.startswith("#") for line in text.splitlines())


def test_without_a_template_the_prompt_is_that_of_training() -> None:
    loaded = tiny.tokenizer()
    chat = ollama.format_of(loaded)
    assert chat is not None
    assert chat.render(DIALOGUE[:1]) == render_prompt("One?", loaded)
    messages = tuple({"role": role, "content": text} for role, text in (*DIALOGUE, ("assistant", "Four.")))
    assert chat.render(DIALOGUE) == render_prompt(Example(messages), loaded)


def test_a_modelfile_has_stop_words_sampling_and_the_context(tmp_path: Path) -> None:
    loaded = tokenizer(CHATML)
    loaded.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    loaded.save_pretrained(tmp_path)
    settings = {"temperature": 0.6, "repetition_penalty": 1.1, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings), encoding="utf8")
    text, warnings = ollama.modelfile(tmp_path, "small.gguf", 4096)
    lines = text.splitlines()
    assert lines[0] == "FROM ./small.gguf" and not warnings
    assert lines[-5:] == [
        'PARAMETER stop "</s>"',
        'PARAMETER stop "<|im_end|>"',
        "PARAMETER temperature 0.6",
        "PARAMETER repeat_penalty 1.1",
        "PARAMETER num_ctx 4096",
    ]
