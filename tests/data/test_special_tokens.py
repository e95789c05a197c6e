"""The special tokens of a tokenizer that rows need."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data.conversations import Example
from apt_ds.data.instructions import encode
from apt_ds.data.special_tokens import end_token, leading_ids, resolve_pad_id
from tests.support import tiny


def test_pad_id_falls_back_to_the_end_token() -> None:
    tok = tiny.tokenizer()
    assert resolve_pad_id(tok) == tok.pad_token_id != tok.eos_token_id
    tok.pad_token = None
    assert resolve_pad_id(tok) == tok.eos_token_id
    tok.eos_token = None
    greet = Example.from_instruction("Greet me.", "", "Hello there.")
    for call in (lambda: resolve_pad_id(tok), lambda: encode(greet, tok, 99), lambda: end_token(tok)):
        with pytest.raises(UserError, match="no end-of-sequence token"):
            call()


def test_a_beginning_comes_where_the_tokenizer_adds_it_and_no_template_does() -> None:
    plain, framing = tiny.tokenizer(), tiny.framing_tokenizer()
    assert leading_ids(plain) == []
    assert leading_ids(framing) == [framing.bos_token_id]
    framing.chat_template = "{{ messages[0]['content'] }}"
    assert leading_ids(framing) == []
