"""One timed pass: what runs, and the defaults of each task type."""

from __future__ import annotations

import pytest
import torch

from apt_ds.config.tasks import ANSWERS, CLASSIFICATION, GENERATION, LANGUAGE_MODEL
from apt_ds.eval.inference_timing import ENCODER, LANGUAGE, PROTOCOLS, TimingPlan, prompts, run_once
from tests.support import tiny


def test_a_plan_gets_the_defaults_of_its_protocol() -> None:
    assert (LANGUAGE.complete(TimingPlan()).prompt, LANGUAGE.complete(TimingPlan()).batch) == (256, 1)
    complete = ENCODER.complete(TimingPlan(prompt=9))
    assert (complete.prompt, complete.batch, complete.rounds) == (9, 128, 5)


def test_prompts_depend_on_the_vocabulary_alone() -> None:
    model = tiny.model()
    ids = prompts(model, 3, 7)
    assert ids.shape == (3, 7) and torch.equal(ids, prompts(tiny.model(seed=9), 3, 7))
    assert ids.max() < model.config.vocab_size


def test_a_prompt_is_read_once_and_tokens_follow_one_by_one() -> None:
    model, lengths = tiny.model().eval(), []
    model.register_forward_pre_hook(lambda _, args, given: lengths.append(given["input_ids"].shape), with_kwargs=True)
    prefill, decode = run_once(model, prompts(model, 2, 6), 3)
    assert lengths == [(2, 6), (2, 1), (2, 1), (2, 1)] and prefill > 0 and decode > 0


@pytest.mark.parametrize("task_type", [LANGUAGE_MODEL, CLASSIFICATION, ANSWERS, GENERATION])
def test_every_task_type_has_a_row_for_each_figure(task_type: str) -> None:
    kinds = {CLASSIFICATION: "bert-classes", ANSWERS: "roberta-answers", GENERATION: "t5"}
    model = tiny.model() if task_type == LANGUAGE_MODEL else tiny.small(kinds[task_type])
    protocol = PROTOCOLS[task_type]
    figures = protocol.run(model.eval(), TimingPlan(prompt=5, new_tokens=2, batch=2))
    assert figures.keys() <= {row.key for row in protocol.rows} and all(value > 0 for value in figures.values())
