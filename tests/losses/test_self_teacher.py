"""The teacher: its values, its independence of masks, and its snapshot under surgery."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from apt_ds.data.batching import collate
from apt_ds.models import adapter
from apt_ds.models.blocks import block_slices
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.runtime.zero import EngineState
from tests.losses.students import KINDS, logits_of, rows, started
from tests.support import multiprocess


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_the_unmasked_model_at_its_snapshot(kind: str) -> None:
    student, batch = started(kind), collate(rows(kind), 0)
    before = logits_of(student.model, kind, batch)
    with student.training_loss.teacher.as_teacher(student.model, student.masks):
        teacher = student.training_loss.task_loss.logits(student.model, batch)
    after = logits_of(student.model, kind, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    expected = copy.deepcopy(student.model)
    student.masks.remove()
    plain = copy.deepcopy(student.model)
    for name, parameter in plain.named_parameters():
        if name in student.training_loss.teacher.snapshot:
            parameter.data.copy_(student.training_loss.teacher.snapshot[name])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(teacher, logits_of(plain, kind, batch), strict=True))
    assert not all(
        torch.allclose(a, b, atol=1e-3) for a, b in zip(teacher, logits_of(expected, kind, batch), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_snapshot_follows_cuts_and_growth(kind: str) -> None:
    student, batch = started(kind), collate(rows(kind), 0)
    values = np.ones(student.anatomy.sizes.total(), dtype=bool)
    for _, span in block_slices(student.anatomy.sizes):
        values[span.start : span.stop : 4] = False
    student.masks.remove()
    # an unpruned teacher whose blocks go with the student's: masks on the old shapes tell what to expect
    mirror = copy.deepcopy(student.model)
    for name, parameter in mirror.named_parameters():
        if name in student.training_loss.teacher.snapshot:
            parameter.data.copy_(student.training_loss.teacher.snapshot[name])
    masks = Masks(student.anatomy)
    masks.install(mirror)
    masks.set(values.astype(float))
    expected = logits_of(mirror, kind, batch)
    student.training_loss.remove_hooks()
    state = EngineState({n: {} for n, p in student.model.named_parameters() if p.requires_grad}, 0.0)
    grown = {path: 6 for path, _ in list(adapter.adapters(student.model))[::2]}
    with student.training_loss.teacher_follows_surgery(state):
        smaller = apply_plan(student.model, student.anatomy, Plan(values, grown), state, torch.Generator())
    fresh = Masks(smaller)
    with student.training_loss.teacher.as_teacher(student.model, fresh):
        found = student.training_loss.task_loss.logits(student.model, batch)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert not any(state.tensors.values())
    width = smaller.sizes.hidden
    assert student.model.get_submodule("transform")(torch.zeros(2, width)).shape == (2, width)


@pytest.mark.slow
def test_the_teacher_costs_a_tenth_more_memory_at_most() -> None:
    """A model as large as MiniLM, 32 sequences of 128 tokens."""
    program = [sys.executable, "-m", "tests.support.step_memory"]
    environment = multiprocess.environment()
    peaks = {}
    for mode in ("student", "distilled"):
        done = subprocess.run(
            [*program, mode, "32", "128"], env=environment, capture_output=True, text=True, check=True
        )
        peaks[mode] = int(done.stdout.split()[-1])
    print(peaks, peaks["distilled"] / peaks["student"])
    assert peaks["student"] < peaks["distilled"] < 1.10 * peaks["student"]
