"""The teacher: its values, its independence of masks, and its snapshot under surgery."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from apt_ds.data.batching import collate
from apt_ds.losses.self_teacher import Teacher
from apt_ds.models import adapter
from apt_ds.models.architectures import anatomy_of, architecture_of
from apt_ds.models.blocks import block_slices
from apt_ds.pruning.masks import Masks
from apt_ds.pruning.surgery import Plan, apply_plan
from apt_ds.runtime.zero import EngineState
from tests.losses.students import KINDS, logits_of, rows, started
from tests.support import multiprocess, tiny


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_the_unmasked_model_at_its_snapshot(kind: str) -> None:
    student, batch = started(kind), collate(rows(kind), 0)
    before = logits_of(student.model, kind, batch)
    with student.phase.teacher.as_teacher(student.model, student.masks):
        teacher = student.training_loss.task_loss.logits(student.model, batch)
    after = logits_of(student.model, kind, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    expected = copy.deepcopy(student.model)
    student.masks.remove()
    plain = copy.deepcopy(student.model)
    for name, parameter in plain.named_parameters():
        if name in student.phase.teacher.snapshot:
            parameter.data.copy_(student.phase.teacher.snapshot[name])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(teacher, logits_of(plain, kind, batch), strict=True))
    assert not all(
        torch.allclose(a, b, atol=1e-3) for a, b in zip(teacher, logits_of(expected, kind, batch), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_teacher_of_a_run_that_trains_all_weights_is_the_whole_model_at_its_snapshot(kind: str) -> None:
    batch = collate(rows(kind), 0)
    model = tiny.small(kind)
    anatomy = anatomy_of(model.config, tiny.TASKS[kind])
    architecture_of(model.config).prepare(model, anatomy)
    expected, teacher, masks = logits_of(copy.deepcopy(model), kind, batch), Teacher(whole=True), Masks(anatomy)
    teacher.take_snapshot(model)
    assert teacher.snapshot.keys() == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    masks.install(model)
    masks.set(np.linspace(0.2, 1.0, anatomy.sizes.total()))
    places = [parameter.data_ptr() for parameter in model.parameters()]
    before = logits_of(model, kind, batch)
    with teacher.as_teacher(model, masks):
        assert not model.training
        assert all(torch.equal(a, b) for a, b in zip(logits_of(model, kind, batch), expected, strict=True))
    assert [parameter.data_ptr() for parameter in model.parameters()] == places and model.training
    after = logits_of(model, kind, batch)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(after, expected, strict=True))


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
        if name in student.phase.teacher.snapshot:
            parameter.data.copy_(student.phase.teacher.snapshot[name])
    masks = Masks(student.anatomy)
    masks.install(mirror)
    masks.set(values.astype(float))
    expected = logits_of(mirror, kind, batch)
    student.training_loss.remove_hooks()
    state = EngineState({n: {} for n, p in student.model.named_parameters() if p.requires_grad}, 0.0)
    grown = {path: 6 for path, _ in list(adapter.adapters(student.model))[::2]}
    with student.phase.teacher_follows_surgery(state):
        smaller = apply_plan(student.model, student.anatomy, Plan(values, grown), state, torch.Generator())
    fresh = Masks(smaller)
    with student.phase.teacher.as_teacher(student.model, fresh):
        outputs = student.training_loss.task_loss.logits(student.model, batch)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs, expected, strict=True))
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
