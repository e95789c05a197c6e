"""The text of a conversation in pieces. `test_instructions.py` has the rows that they become."""

from __future__ import annotations

from apt_ds.data.conversations import Example
from apt_ds.data.prompts import PREAMBLE, RESPONSE, prompt_ids, render_prompt, segments_of
from tests.support import tiny

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CHAT = Example(
    (
        {"role": "user", "content": "Name a color."},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Another?"},
        {"role": "assistant", "content": "Blue."},
    )
)


def test_a_template_is_cut_at_the_borders_of_the_answers() -> None:
    tok = tiny.tokenizer()
    tok.chat_template = TEMPLATE
    assert segments_of(CHAT, tok, None) == [
        ("[user] Name a color.</s>[assistant] ", None),
        ("Red.</s>", 1),
        ("[user] Another?</s>[assistant] ", None),
        ("Blue.</s>", 3),
    ]
    assert render_prompt(CHAT, tok) == "[user] Name a color.</s>[assistant] Red.</s>[user] Another?</s>[assistant] "


def test_without_a_template_the_sections_repeat() -> None:
    pieces = segments_of(CHAT, tiny.tokenizer(), None)
    assert [answer for _, answer in pieces] == [None, 1, None, 3]
    assert pieces[0][0] == f"{PREAMBLE}### Instruction:\nName a color.\n\n{RESPONSE}"
    assert [text for text, answer in pieces if answer is not None] == ["Red.</s>", "Blue.</s>"]
    assert render_prompt(CHAT, tiny.tokenizer()) == "".join(text for text, _ in pieces[:-1])


def test_a_question_is_a_prompt_of_one_turn() -> None:
    tok, question = tiny.tokenizer(), "Name a color."
    asked = Example.from_instruction(question)
    assert render_prompt(question, tok) == render_prompt(asked, tok)
    assert prompt_ids(question, tok) == prompt_ids(asked, tok) != []
