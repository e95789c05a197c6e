"""Options that were renamed are answered with their present name."""

from __future__ import annotations

import pytest

from apt_ds.config.errors import UserError
from apt_ds.config.renamed_flags import RENAMED_FLAGS
from apt_ds.config.resolve import resolve
from apt_ds.config.run_config import OPTIONS

BENCHMARK = ("inside", "between")


@pytest.mark.parametrize("old", [name for name in RENAMED_FLAGS if name not in BENCHMARK])
def test_a_renamed_option_is_answered_with_its_name(old: str) -> None:
    now = RENAMED_FLAGS[old]
    assert old not in OPTIONS and now.split()[0].removeprefix("--") in OPTIONS
    with pytest.raises(UserError) as mistake:
        resolve([f"--{old}", "1"])
    assert f"--{old}" in str(mistake.value) and now in str(mistake.value)
