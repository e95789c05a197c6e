"""What several tests of models share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.tiny_quantized import Loaded


@pytest.fixture(scope="module")
def quantizable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose projections can be quantized."""
    from tests.support import tiny
    from tests.support.tiny_quantized import SIZES

    return tiny.save_model(tmp_path_factory.mktemp("quantized") / "model", **SIZES)


@pytest.fixture
def load(quantizable: Path) -> Callable[..., Loaded]:
    """Loads that model: bits, data type, and whether it has adapters."""
    from tests.support import tiny_quantized

    return partial(tiny_quantized.load, quantizable)
