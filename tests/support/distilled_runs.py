"""A check that distilled runs in several worlds and ZeRO stages agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def check_alike(runs: list[dict[str, Any]]) -> None:
    """Check that four runs have the same decisions, and the same figures up to rounding."""
    first, *others = runs
    assert len(others) == 3
    assert first["kept"][-1] <= 0.6 and first["rebuilds"] in (2, 3)
    for other in others:
        assert other["alive"] == first["alive"] and other["ranks"] == first["ranks"]
        assert np.allclose(other["losses"], first["losses"], rtol=1e-3)
        assert np.allclose(other["scores"], first["scores"], rtol=2e-2)
        assert other["held_out"] == pytest.approx(first["held_out"], rel=1e-3)
        assert other["score"] == pytest.approx(first["score"], abs=1e-6)
