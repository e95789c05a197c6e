"""Which tokenizers put a space before a text, and which tokens stand for bytes."""

from __future__ import annotations

from typing import Any

import pytest

from apt_ds.models.export.gguf_vocabulary import adds_space, is_byte


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"}}, True),
        ({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}, False),
        ({}, False),
    ],
)
def test_a_space_before_a_text(tokenizer: dict[str, Any], expected: bool) -> None:
    assert adds_space(tokenizer) is expected


def test_only_two_hex_digits_name_a_byte() -> None:
    assert is_byte("<0x0A>") and not is_byte("<0x0A0>") and not is_byte("<s>")
