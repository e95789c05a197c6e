"""What one record becomes is recorded: ids and labels of 200 rows of every format, under several templates."""

from __future__ import annotations

import json

import pytest

from tests.support import golden_rows


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    """What records become now."""
    return golden_rows.record()


RECORDED: dict[str, str] = json.loads(golden_rows.PATH.read_text("utf-8"))


def test_every_combination_is_recorded(digests: dict[str, str]) -> None:
    assert digests.keys() == RECORDED.keys()
    hashes = [text for text in RECORDED.values() if " " not in text]
    assert len(hashes) >= 18 and sum(map(len, hashes)) > 18 * 190 * golden_rows.DIGITS


@pytest.mark.parametrize("name", RECORDED)
def test_rows_are_those_recorded(name: str, digests: dict[str, str]) -> None:
    digits = golden_rows.DIGITS
    rows, recorded = (
        [text[i : i + digits] for i in range(0, len(text), digits)] for text in (digests[name], RECORDED[name])
    )
    differing = [i for i, pair in enumerate(zip(rows, recorded, strict=False)) if pair[0] != pair[1]]
    assert rows == recorded, f"rows {differing[:9]} of {name} changed ({len(rows)} rows, {len(recorded)} recorded)"
