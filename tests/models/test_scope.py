"""Which kinds of block compete for removal."""

from __future__ import annotations

import pytest

from apt_ds.config.run_config import RunConfig
from apt_ds.models.architectures import anatomy_of
from apt_ds.models.scope import competing_kinds
from tests.support import tiny


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [("q,v", ("heads", "hidden")), ("up", ("neurons", "hidden")), ("o,down", ("heads", "neurons", "hidden"))],
)
def test_adapted_sublayers_compete(targets: str, kinds: tuple[str, ...]) -> None:
    run = RunConfig(model_name_or_path="m", data_path="d", prune_blocks="heads,neurons,hidden")
    run, anatomy = run.replace(adapter_targets=targets), anatomy_of(tiny.config())
    assert competing_kinds(run.replace(prune_scope="all"), anatomy) == ("heads", "neurons", "hidden")
    assert competing_kinds(run.replace(prune_scope="adapted"), anatomy) == kinds


def test_blocks_that_the_run_keeps_never_compete() -> None:
    run = RunConfig(model_name_or_path="m", data_path="d", prune_blocks="neurons", prune_scope="adapted")
    assert competing_kinds(run.replace(adapter_targets="q,v"), anatomy_of(tiny.config())) == ()
