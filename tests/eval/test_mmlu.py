"""MMLU: prompts, answers, and that neither batches, ranks nor the reused prefix change a choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from apt_ds.config.errors import UserError
from apt_ds.data import formats
from apt_ds.data import mmlu as data
from apt_ds.data.mmlu import Mmlu, Question
from apt_ds.eval import mmlu
from apt_ds.eval.choice_scores import Encoder
from apt_ds.eval.continuation_scores import continuation_scores
from apt_ds.eval.resume_file import ResumeFile
from tests.eval.test_choice_scores import whole_scores
from tests.support import multiprocess
from tests.support.eval_jobs import continuations
from tests.support.mmlu_fixtures import SUBJECTS, model, planted, small_set, tokenizer, write_exam

EXPECTED = """The following are multiple choice questions (with answers) about college physics.

the big cat sees
A. one
B. two
C.  three
D. four
Answer: C

a dog, "red"
A. in
B. on
C. under
D. not
Answer:"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exam(tmp_path_factory.mktemp("mmlu"))


def test_a_prompt_is_this_text() -> None:
    shot = Question("college_physics", "the big cat sees ", ("one", "two", " three", "four"), 2)
    asked = Question("college_physics", ' a dog, "red"\n', ("in", "on", "under", "not"), 0)
    assert mmlu.prompt(asked, [shot]) == EXPECTED
    assert mmlu.prompt(asked, []) == EXPECTED.replace(EXPECTED[EXPECTED.index("the big") : EXPECTED.index("a dog")], "")


def test_all_57_subjects_have_a_category() -> None:
    sizes = {name: len(members) for name, members in data.CATEGORIES.items()}
    assert sizes == {"STEM": 18, "humanities": 13, "social sciences": 12, "other": 14}
    assert len(set(data.SUBJECTS)) == 57


def test_files_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('"two\nlines, ""x""",a, b,"c,d",0.10,B\nNone,NA,,null, ,D\n', encoding="utf8")
    first, second = data.read_csv(path, "anatomy")
    assert first == Question("anatomy", 'two\nlines, "x"', ("a", " b", "c,d", "0.10"), 1, 2)
    assert second == Question("anatomy", "None", ("NA", "", "null", " "), 3, 3)


def test_a_long_question_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, question = tmp_path / "a.csv", "x" * 200_000
    path.write_text(f'"{question}",a,b,c,d,B\n', encoding="utf8")
    assert data.read_csv(path, "anatomy") == [Question("anatomy", question, ("a", "b", "c", "d"), 1, 1)]
    monkeypatch.setattr(formats, "LONGEST_CELL", 1000)
    with pytest.raises(UserError, match=r"as CSV: a cell has more than 1000 characters\. Close its quote"):
        data.read_csv(path, "anatomy")


@pytest.mark.parametrize("first", ['"One, or two?"', "Which one?"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_mark_and_blank_lines_are_no_part_of_a_question(first: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = [f"\ufeff{first},1,2,3,4,A", "", "B?,1,2,3,4,B", "   ", "", ""]
    path.write_bytes(end.join(lines).encode())
    one, two = data.read_csv(path, "anatomy")
    assert one == Question("anatomy", first.strip('"'), ("1", "2", "3", "4"), 0, 1)
    assert two == Question("anatomy", "B?", ("1", "2", "3", "4"), 1, 3)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("q,a,b,c,d,A\nq,a,b,c,A\n", "line 2 has 5 columns. Give 6"),
        ("question,A,B,C,D,answer\n", "line 1: the last column is 'answer'"),
        ("", "holds no question"),
        ('"q,a', "cannot be read as CSV"),
    ],
)
def test_a_broken_file_is_named_with_its_line(content: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "anatomy_test.csv"
    path.write_text(content, encoding="utf8")
    with pytest.raises(UserError, match=problem) as raised:
        data.read_csv(path, "anatomy")
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_sample_is_the_same_every_time_and_another_by_seed(place: Path) -> None:
    drawn = [data.load(str(place / "data"), SUBJECTS, sample=9, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [d.count() for d in drawn] == [9, 9, 9]
    assert data.load(str(place / "data"), SUBJECTS, limit=2).count() == 6
    with pytest.raises(UserError, match="--sample 34 is not allowed: there are 33"):
        data.load(str(place / "data"), SUBJECTS, sample=34)


@pytest.mark.parametrize("letter", ["A", "C"])
def test_a_model_that_always_says_one_letter_scores_its_share(letter: str) -> None:
    asked = small_set(count=11)
    result = mmlu.evaluate(planted(letter), tokenizer(), asked)
    index = data.LETTERS.index(letter)
    assert all(choice == index for choices in result.choices.values() for choice in choices)
    right = sum(q.answer == index for q in asked.test["anatomy"])
    figures = result.figures()
    p = right / 11
    assert right == 3 and figures["accuracy"] == pytest.approx(p) and figures["count"] == 33
    assert figures["stderr"] == pytest.approx((p * (1 - p) / 32) ** 0.5)
    assert figures["by_subject"]["anatomy"]["stderr"] == pytest.approx((p * (1 - p) / 10) ** 0.5)
    assert {name: row["count"] for name, row in figures["by_category"].items()} == {
        "STEM": 11,
        "humanities": 11,
        "other": 11,
    }


def test_accuracy_follows_the_answers() -> None:
    asked = small_set()
    turned = {s: [q._replace(answer=2) for q in rows] for s, rows in asked.test.items()}
    assert mmlu.evaluate(planted("C"), tokenizer(), replace(asked, test=turned)).figures()["accuracy"] == 1
    assert mmlu.evaluate(planted("B"), tokenizer(), replace(asked, test=turned)).figures()["accuracy"] == 0


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_batches_and_the_reused_prefix_change_no_choice(kind: str) -> None:
    llama, asked = model(kind=kind), small_set()
    choices = [mmlu.evaluate(llama, tokenizer(), asked, mmlu.Settings(reuse_prefix=r, batch_size=b)).choices
             for r, b in ((True, 3), (False, 8))]  # fmt: skip
    assert choices[0] == choices[1]
    assert len({choice for rows in choices[0].values() for choice in rows}) > 1


def test_a_prefix_is_run_once_for_all_questions() -> None:
    llama, asked, run = model(), small_set(), []
    llama.register_forward_pre_hook(lambda _, args, kwargs: run.append(kwargs["input_ids"].numel()), with_kwargs=True)
    tokens = {}
    for reuse in (True, False):
        run.clear()
        mmlu.evaluate(llama, tokenizer(), asked, mmlu.Settings(reuse_prefix=reuse))
        tokens[reuse] = sum(run)
    assert tokens[True] < tokens[False] / 3


def test_shots_are_dropped_from_the_front_when_the_context_is_full() -> None:
    llama, encoder, asked = model(), Encoder(tokenizer()), small_set()
    shots, rows = asked.dev["anatomy"], asked.test["anatomy"]
    lengths = [len(row) for row in encoder([mmlu.prompt(q, shots) for q in rows])]
    room = sorted(lengths)[len(lengths) // 2]
    settings = mmlu.Settings(max_length=room)
    expected = []
    for question, length in zip(rows, lengths, strict=True):
        kept = next(shots[d:] for d in range(6) if len(encoder([mmlu.prompt(question, shots[d:])])[0]) <= room)
        assert (kept == shots) == (length <= room)
        expected.append(int(whole_scores(llama, encoder, [mmlu.prompt(question, kept)]).argmax()))
    result = mmlu.evaluate(llama, tokenizer(), Mmlu({"anatomy": shots}, {"anatomy": rows}), settings)
    assert result.choices["anatomy"] == expected
    with pytest.raises(UserError, match="a context of 20 tokens is too small: a question of anatomy, line 1 of its"):
        mmlu.evaluate(llama, tokenizer(), asked, mmlu.Settings(max_length=20))


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama, asked, path = model(), small_set(), tmp_path / "progress"
    whole = mmlu.evaluate(llama, tokenizer(), asked)
    original, seen = mmlu.answer_subject, []

    def stop_at_the_last(runner: Any, encoder: Any, rows: list[Question], *more: Any) -> list[int]:
        seen.append(rows[0].subject)
        if len(seen) == len(SUBJECTS):
            raise KeyboardInterrupt
        return original(runner, encoder, rows, *more)

    monkeypatch.setattr(mmlu, "answer_subject", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        mmlu.evaluate(llama, tokenizer(), asked, resume_file=ResumeFile(path, {"model": "m", "num_shots": 5}))
    seen.append("resumed")
    again = mmlu.evaluate(llama, tokenizer(), asked, resume_file=ResumeFile(path, {"model": "m", "num_shots": 5}))
    assert seen[-2:] == ["resumed", SUBJECTS[-1]]
    assert again == whole


@pytest.mark.dist
def test_ranks_and_shards_agree_with_one_process(place: Path) -> None:
    # 7 questions in batches of 2: the second rank runs out
    asked = data.load(str(place / "data"), SUBJECTS, limit=7)
    alone = mmlu.evaluate(model(), tokenizer(), asked).choices
    for dropping in (0, 150):
        expected = alone
        if dropping:
            expected = mmlu.evaluate(model(), tokenizer(), asked, mmlu.Settings(max_length=dropping)).choices
        choices = multiprocess.run(
            2, "eval_jobs.mmlu_choices", {"folder": str(place), "limit": 7, "max_length": dropping}
        )
        assert choices["plain"] == choices["sharded"] == expected
        scores, greedy = continuation_scores(model(), continuations(), 2, torch.device("cpu"))
        for name in ("plain_scores", "sharded_scores"):
            assert choices[name][0] == pytest.approx(scores.tolist(), abs=1e-4) and choices[name][1] == greedy.tolist()
        assert choices["held"] < 0.6 * choices["total"]
