"""Which answers are written again, and what is counted. No model is needed."""

from __future__ import annotations

from dataclasses import replace

from apt_ds.data.conversations import Example
from apt_ds.data.prompts import prompt_ids
from apt_ds.eval.generated_answers import Answer, GenerationOptions
from apt_ds.eval.rewriting import RewritingFigures, merged, plan_of
from tests.support import tiny

WORDS = tiny.tokenizer()
EXAMPLES = [Example.from_instruction(f"the {'big ' * n}cat", "", "sees") for n in range(5)]
LONGEST = len(prompt_ids(EXAMPLES[4], WORDS))


def test_limits_are_the_room_that_prompts_leave() -> None:
    skipped = replace(EXAMPLES[0], untrained=frozenset({1}))
    plan = plan_of([skipped, *EXAMPLES], WORDS, LONGEST, GenerationOptions(3))
    # the last prompt fills the row
    assert plan.chosen == [1, 2, 3, 4] and plan.limits == [3, 3, 2, 1]
    assert plan.prompts == [prompt_ids(example, WORDS) for example in EXAMPLES[:4]]
    tokens = sum(map(len, plan.prompts))
    expected = f"rewriting 4 of 6 answers greedily: prompts of {tokens} tokens, at most 9 new tokens"
    assert plan.describe(GenerationOptions(3)) == expected
    assert "at temperature 0.7:" in plan.describe(GenerationOptions(3, 0.7))


def test_empty_answers_are_dropped_and_others_counted() -> None:
    plan = plan_of(EXAMPLES, WORDS, LONGEST, GenerationOptions(3))
    answers = [Answer("a", 2, True), Answer(" \n", 1, True), Answer("b", 3, False), Answer("c", 2, True)]
    rewritten, figures = merged(plan, answers, 1.5)
    assert [example.output for example in rewritten] == ["a", "b", "c", "sees"]
    assert [example.unfinished for example in rewritten] == [False, True, False, False]
    assert figures == RewritingFigures(rewritten=3, unfinished=1, kept=1, dropped=1, tokens=8, seconds=1.5)
    assert figures.mean_tokens == 2.0 and figures + RewritingFigures() == figures
    assert "3 answers rewritten (1 of them cut at the limit), 1 examples kept" in figures.describe()


def test_a_warning_names_answers_without_end() -> None:
    assert RewritingFigures(rewritten=10, unfinished=5).warning("--max", False) == ""
    warning = RewritingFigures(rewritten=10, unfinished=6).warning("--max", has_template=False)
    assert warning.startswith("6 of 10 answers did not end at the limit of --max") and "\n" not in warning
    assert "without chat template" in warning
    other = RewritingFigures(rewritten=10, unfinished=6).warning("--max", has_template=True)
    assert "without chat template" not in other and other.endswith("Give a higher limit")
