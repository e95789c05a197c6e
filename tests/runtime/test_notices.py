"""Warnings of a run are printed, and kept once each."""

from __future__ import annotations

import pytest

from apt_ds.runtime import notices


def test_a_warning_is_printed_each_time_and_kept_once(capsys: pytest.CaptureFixture[str]) -> None:
    notices.start()
    notices.warn("first")
    notices.keep("second")
    notices.warn("first")
    assert capsys.readouterr().err == "first\nfirst\n"
    kept = notices.kept()
    kept.append("mine")
    assert notices.kept() == ["first", "second"]
    notices.start()
    assert notices.kept() == []
