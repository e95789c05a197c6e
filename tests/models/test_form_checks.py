"""What a run cannot be written as is refused before it trains (`export/form_checks.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from apt_ds.config.errors import UserError
from apt_ds.config.run_config import RunConfig
from apt_ds.config.tasks import LANGUAGE_MODEL
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.export import form_checks
from tests.support import tiny, tiny_experts, tiny_families

ALL = {"prune_blocks": "heads,neurons,hidden"}
ADAPTIVE = {"structure": "adaptive"}


def config_of(name: str) -> PretrainedConfig:
    if name in tiny_families.FAMILIES:
        return tiny_families.config(name)
    return tiny_experts.model(name).config if name in tiny_experts.FAMILIES else tiny.small(name).config


def check(name: str, form: str, dtype: torch.dtype = torch.float32, **flags: Any) -> None:
    config = config_of(name)
    anatomy = anatomy_of(config, tiny.TASKS.get(name, LANGUAGE_MODEL))
    form_checks.check(RunConfig(export_format=form, **flags), config, anatomy, dtype)


REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "heads of an encoder": (("bert-classes", "stock"), {}, "a 'bert' does not hold every number of heads; give padded"),
    "heads of a T5": (("t5", "stock"), {}, "a 't5' does not hold every number of heads"),
    "experts": (
        ("mixtral", "padded"),
        ADAPTIVE | {"prune_blocks": "heads,experts"},
        r"a 'mixtral' cannot be padded here: .* \(--prune_blocks experts\); give adaptive",
    ),
    "norms over all heads": (
        ("olmo2", "padded", torch.bfloat16),
        ADAPTIVE,
        "which float32 alone can correct, and weights are written in bfloat16; give adaptive",
    ),
    "hidden sizes of an encoder": (
        ("modernbert-classes", "padded"),
        ALL,
        "does not hold every hidden size; leave hidden out of --prune_blocks, or give adaptive",
    ),
    "hidden sizes of a Gemma": (("gemma3", "padded"), ADAPTIVE | ALL, "does not hold every hidden size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused(case: str) -> None:
    given, flags, line = REFUSED[case]
    with pytest.raises(UserError, match=line) as error:
        check(*given, **flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_without_pruning_or_with_another_form_is_not(case: str) -> None:
    given, flags, _ = REFUSED[case]
    check(*given, **flags | {"pruning": "none"})
    check(given[0], "adaptive", *given[2:], **flags)
    check(given[0], "auto", *given[2:], **flags)


ALLOWED: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("llama3", "stock"), ALL),
    (("gemma3", "stock"), ALL),
    (("bert-classes", "stock"), {"prune_blocks": "neurons"}),
    (("llama3", "padded", torch.bfloat16), ADAPTIVE | ALL),
    (("t5", "padded"), ADAPTIVE | ALL),
    (("bert-classes", "padded"), ADAPTIVE),
    (("mixtral", "padded"), ADAPTIVE),
    (("olmo2", "padded", torch.bfloat16), ADAPTIVE | {"prune_blocks": "neurons"}),
    (("olmo2", "padded"), ADAPTIVE),
]


@pytest.mark.parametrize(("given", "flags"), ALLOWED)
def test_what_can_be_written_is_allowed(given: tuple[Any, ...], flags: dict[str, Any]) -> None:
    check(*given, **flags)
