"""The types of the arguments of commands."""

from __future__ import annotations

import argparse

import pytest

from apt_ds.config.cli import above_zero, at_least, counts


@pytest.mark.parametrize("text", ["--5", "-", "", "1.5", "+-1", "x", "1_0", "-1", "9" * 5000])
def test_a_whole_number_is_asked_for(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not allowed: give a whole number, at least 1"):
        at_least(1)(text)
    with pytest.raises(argparse.ArgumentTypeError, match="is not allowed: give a whole number, at least 1"):
        counts(f"3,{text or 'x'}")


@pytest.mark.parametrize("text", ["1_0", "٣", "--5", "1.0", ""])
def test_other_digits_and_signs_are_no_whole_number(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not allowed: give a whole number, at least 1"):
        at_least(1)(text)


def test_whole_numbers_are_taken() -> None:
    assert (at_least(1)("12"), at_least(-3)("-3"), counts("1, 2")) == (12, -3, [1, 2])


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", "1_0", "1e999", ""])
def test_a_number_above_zero_is_asked_for(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not allowed: give a number above 0"):
        above_zero(text)
    assert above_zero("1e-4") == 1e-4
