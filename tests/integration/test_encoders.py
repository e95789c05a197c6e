"""Encoders other than BERT as users run them: the same distilled run in every ZeRO stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support import multiprocess, tiny

FLAGS = [
    *("--pruning", "gradual", "--structure", "adaptive", "--sparsity", "0.4", "--max_steps", "8", "--distill"),
    *("--align", "4", "--mask_step", "0.5", "--rank", "2", "--prune_every", "2"),
    *("--prune_blocks", "heads,neurons,hidden"),
]
KINDS = {
    "modernbert-classes": [],
    "modernbert-answers": ["--teacher", "shrinking", "--gradient_checkpointing"],
    "deberta-classes": ["--teacher", "shrinking", "--gradient_checkpointing"],
    "deberta-answers": [],
    "electra-classes": [],
    "distilbert-answers": ["--layer_match", "previous"],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Every kind's runs: one process first, then two."""
    folder = tmp_path_factory.mktemp("encoders")
    modes = {kind: [*tiny.save_task(folder / kind, kind), *FLAGS, *own] for kind, own in KINDS.items()}
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for world, stages in ((1, [(0, False)]), (2, [(2, False), (3, False), (3, True)])):
        given = {"folder": str(folder), "stages": stages, "modes": modes}
        for name, run in multiprocess.run(world, "runs", given).items():
            runs[name.split()[1]].append(run)
    return runs


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("kind", KINDS)
def test_a_distilled_run_is_the_same_in_every_stage(kind: str, found: dict[str, list[dict[str, Any]]]) -> None:
    first, *others = found[kind]
    assert len(others) == 3
    assert first["kept"][-1] <= 0.6 and first["rebuilds"] in (2, 3)
    for other in others:
        assert other["alive"] == first["alive"] and other["ranks"] == first["ranks"]
        assert np.allclose(other["losses"], first["losses"], rtol=1e-3)
        assert np.allclose(other["scores"], first["scores"], rtol=2e-2)
        assert other["held_out"] == pytest.approx(first["held_out"], rel=1e-3)
        assert other["score"] == pytest.approx(first["score"], abs=1e-6)
