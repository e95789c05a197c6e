"""MMLU: what is asked, what counts as an answer, and that neither batches, ranks nor the reused prefix change it."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds
from conftest import ROOT
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from apt_ds.config import UserError
from apt_ds.data import mmlu as data
from apt_ds.data.mmlu import Mmlu, Question
from apt_ds.eval import jobs, loading, mmlu
from apt_ds.eval.letters import Encoder, letter_scores, shared_length
from apt_ds.eval.progress import Progress

SUBJECTS = ("anatomy", "college_physics", "world_religions")
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


def questions(subject: str, count: int, first: int = 0) -> list[Question]:
    """Of different lengths, answers in turn A, B, C, D."""
    made = []
    for i in range(first, first + count):
        words = [tiny.WORDS[(7 * i + k) % len(tiny.WORDS)] for k in range(8)]
        text = " ".join(words[: 2 + i % 5] + [f"w{i}"])
        made.append(Question(subject, text, (words[4], words[5], words[6], f"w{i + 100}"), i % 4, i + 1))
    return made


def small_set(count: int = 11) -> Mmlu:
    return Mmlu({s: questions(s, 5, 50) for s in SUBJECTS}, {s: questions(s, count) for s in SUBJECTS})


def write_folder(folder: Path, asked: Mmlu) -> Path:
    """The original layout."""
    for split, part in (("dev", asked.dev), ("test", asked.test)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for subject, rows in part.items():
            lines = [",".join([q.text, *q.choices, data.LETTERS[q.answer]]) for q in rows]
            (folder / split / f"{subject}_{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf8")
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny one, with words for letters and the fixed text in place of unused ones."""
    fixed = [*"ABCD", "Answer", ":", ".", "The", "following", "are", "multiple", "choice", "questions"]
    fixed += ["(", "with", "answers", ")", "about", "anatomy", "college", "physics", "world", "religions"]
    made = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    vocabulary = {word: i for word, i in made["model"]["vocab"].items() if i < 200}
    made["model"]["vocab"] = vocabulary | {word: 200 + i for i, word in enumerate(fixed)}
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(made)), pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
    )


def model(**changes: object) -> LlamaForCausalLM:
    # with this seed answers differ
    return tiny.model(seed=10, max_position_embeddings=512, **changes)


def planted(letter: str) -> LlamaForCausalLM:
    """Answers `letter` always: its row of the head is along what the last position holds, whatever that is."""
    made = model(tie_word_embeddings=False)
    ids = Encoder(tokenizer()).letters
    with torch.no_grad():
        # a constant through the residual stream: the last norm sees it in every position
        made.model.embed_tokens.weight[:, 0] = 1000.0
        made.model.norm.weight[0] = 1.0
        made.lm_head.weight[ids, 0] = 0.0
        made.lm_head.weight[ids[data.LETTERS.index(letter)], 0] = 100.0
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` and `data`."""
    folder = tmp_path_factory.mktemp("mmlu")
    model().save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    write_folder(folder / "data", small_set())
    return folder


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


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("q,a,b,c,d,A\nq,a,b,c,A\n", "line 2: 5 columns; give 6"),
        ("question,A,B,C,D,answer\n", "line 1: the last column is 'answer'"),
        ("", "holds no question"),
        ('"q,a', "cannot be read as CSV"),
    ],
)
def test_a_broken_file_is_named_with_its_line(content: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "anatomy_test.csv"
    path.write_text(content, encoding="utf8")
    with pytest.raises(UserError, match=found) as raised:
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
    assert all(choice == index for found in result.choices.values() for choice in found)
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


def whole_scores(made: LlamaForCausalLM, encoder: Encoder, prompts: list[str]) -> torch.Tensor:
    """One prompt at a time, nothing padded, nothing reused."""
    rows = [torch.tensor([row]) for row in encoder(prompts)]
    with torch.no_grad():
        return torch.cat([made(row).logits[:, -1].log_softmax(-1)[:, encoder.letters] for row in rows])


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_the_reused_prefix_changes_nothing(kind: str) -> None:
    made, encoder, asked = model(kind=kind), Encoder(tokenizer()), small_set()
    for subject, rows in asked.test.items():
        prompts = [mmlu.prompt(question, asked.dev[subject]) for question in rows]
        expected = whole_scores(made, encoder, prompts)
        ids = encoder(prompts)
        prefix = shared_length(ids)
        assert prefix > 100 and min(map(len, ids)) - prefix < 40
        for reused in (prefix, 0):
            found = letter_scores(made, ids, encoder.letters, 4, torch.device("cpu"), reused)
            assert torch.allclose(found, expected, atol=1e-4)
            assert torch.equal(found.argmax(1), expected.argmax(1))
    found = [mmlu.evaluate(made, tokenizer(), asked, mmlu.Settings(reuse_prefix=r, batch_size=b)).choices
             for r, b in ((True, 3), (False, 8))]  # fmt: skip
    assert found[0] == found[1]
    assert len({choice for rows in found[0].values() for choice in rows}) > 1


def test_a_prefix_is_run_once_for_all_questions() -> None:
    made, asked, run = model(), small_set(), []
    made.register_forward_pre_hook(lambda _, args, kwargs: run.append(kwargs["input_ids"].numel()), with_kwargs=True)
    tokens = {}
    for reuse in (True, False):
        run.clear()
        mmlu.evaluate(made, tokenizer(), asked, mmlu.Settings(reuse_prefix=reuse))
        tokens[reuse] = sum(run)
    assert tokens[True] < tokens[False] / 3


def test_one_prompt_alone_still_has_a_token_of_its_own() -> None:
    assert shared_length([[1, 2, 3]]) == 2
    assert shared_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_length([[1, 2], [1, 2, 3]]) == 1
    assert shared_length([[1, 2], [3]]) == 0


def test_shots_are_dropped_from_the_front_when_the_context_is_full() -> None:
    made, encoder, asked = model(), Encoder(tokenizer()), small_set()
    shots, rows = asked.dev["anatomy"], asked.test["anatomy"]
    lengths = [len(row) for row in encoder([mmlu.prompt(q, shots) for q in rows])]
    room = sorted(lengths)[len(lengths) // 2]
    settings = mmlu.Settings(max_length=room)
    expected = []
    for question, length in zip(rows, lengths, strict=True):
        kept = next(shots[d:] for d in range(6) if len(encoder([mmlu.prompt(question, shots[d:])])[0]) <= room)
        assert (kept == shots) == (length <= room)
        expected.append(int(whole_scores(made, encoder, [mmlu.prompt(question, kept)]).argmax()))
    found = mmlu.evaluate(made, tokenizer(), Mmlu({"anatomy": shots}, {"anatomy": rows}), settings)
    assert found.choices["anatomy"] == expected
    with pytest.raises(UserError, match="a context of 20 tokens is too small: a question of anatomy, line 1 of its"):
        mmlu.evaluate(made, tokenizer(), asked, mmlu.Settings(max_length=20))


def test_a_tokenizer_without_letters_is_refused() -> None:
    with pytest.raises(UserError, match="no single token for each of ' A'"):
        Encoder(tiny.tokenizer())


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked, path = model(), small_set(), tmp_path / "progress"
    whole = mmlu.evaluate(made, tokenizer(), asked)
    original, seen = mmlu.answer_subject, []

    def stop_at_the_last(runner: Any, encoder: Any, rows: list[Question], *more: Any) -> list[int]:
        seen.append(rows[0].subject)
        if len(seen) == len(SUBJECTS):
            raise KeyboardInterrupt
        return original(runner, encoder, rows, *more)

    monkeypatch.setattr(mmlu, "answer_subject", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        mmlu.evaluate(made, tokenizer(), asked, progress=Progress(path, {"model": "m", "num_shots": 5}))
    seen.append("resumed")
    again = mmlu.evaluate(made, tokenizer(), asked, progress=Progress(path, {"model": "m", "num_shots": 5}))
    assert seen[-2:] == ["resumed", SUBJECTS[-1]]
    assert again == whole
    with pytest.raises(UserError, match="differs in num_shots; delete it to start anew"):
        Progress(path, {"model": "m", "num_shots": 4})
    path.write_text("{", encoding="utf8")
    with pytest.raises(UserError, match="cannot be read; delete it"):
        Progress(path, {})


@pytest.mark.parametrize("own_file", [False, True])
def test_an_interrupted_script_asks_only_what_is_missing(
    own_file: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / ("kept" if own_file else "mmlu.json.progress")
    words = ["--model", str(place / "model"), "--data_dir", str(place / "data"), "--subjects", ",".join(SUBJECTS)]
    words += ["--json", str(tmp_path / "mmlu.json"), *(["--resume_file", str(kept)] if own_file else [])]
    given = runpy.run_path(str(ROOT / "launchers" / "eval_mmlu.py"))["parser"]().read(words)
    original, asked = mmlu.answer_subject, []

    def answer(runner: Any, encoder: Any, rows: list[Question], *more: Any) -> list[int]:
        asked.append(rows[0].subject)
        if asked == [*SUBJECTS[:2]]:
            raise KeyboardInterrupt
        return original(runner, encoder, rows, *more)

    monkeypatch.setattr(mmlu, "answer_subject", answer)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_mmlu(given)
    assert list(json.loads(kept.read_text(encoding="utf8"))["answers"]) == [SUBJECTS[0]]
    figures = jobs.run_mmlu(given)
    assert asked == [*SUBJECTS[:2], *SUBJECTS[1:]]
    monkeypatch.setattr(mmlu, "answer_subject", original)
    whole = mmlu.evaluate(model(), tokenizer(), data.load(str(place / "data"), SUBJECTS)).figures()
    assert {key: figures[key] for key in whole} == whole
    # a file the user named is the user's
    assert kept.exists() == own_file


def test_a_fingerprint_tells_models_apart(place: Path, tmp_path: Path) -> None:
    first = loading.fingerprint(str(place / "model"))
    assert first == loading.fingerprint(str(place / "model"))
    changed = model()
    with torch.no_grad():
        changed.model.norm.weight[3] += 1
    changed.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert loading.fingerprint(str(tmp_path)) != first


@pytest.mark.dist
def test_ranks_and_shards_agree_with_one_process(place: Path) -> None:
    # 7 questions in batches of 2: the second rank runs out
    asked = data.load(str(place / "data"), SUBJECTS, limit=7)
    alone = mmlu.evaluate(model(), tokenizer(), asked).choices
    for dropping in (0, 150):
        expected = alone
        if dropping:
            expected = mmlu.evaluate(model(), tokenizer(), asked, mmlu.Settings(max_length=dropping)).choices
        found = worlds.run(2, "judging.mmlu_choices", {"folder": str(place), "limit": 7, "max_length": dropping})
        assert found["plain"] == found["sharded"] == expected
        assert found["held"] < 0.6 * found["total"]


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, str(ROOT / "launchers" / "eval_mmlu.py"), *words]
    return subprocess.run(call, env=worlds.environment(), capture_output=True, text=True, timeout=200, check=False)


def test_the_script_writes_table_and_figures(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "mmlu.json"
    words = ["--model", str(place / "model"), "--data_dir", str(place / "data"), "--subjects", ",".join(SUBJECTS)]
    ended = launch(*words, "--json", str(path), "--batch_size", "4")
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(path.read_text(encoding="utf8"))
    asked = data.load(str(place / "data"), SUBJECTS)
    expected = mmlu.evaluate(model(), tokenizer(), asked).figures()
    assert {key: figures[key] for key in expected} == expected
    assert "world_religions" in ended.stdout and "STEM" in ended.stdout
    assert os.listdir(tmp_path) == ["mmlu.json"]


def no_model(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(tmp_path), "--data_dir", str(place / "data"), "--subjects", "anatomy"]


def unknown_subject(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--data_dir", str(place / "data"), "--subjects", "anatmy"]


def missing_files(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--data_dir", str(place / "data")]


def unknown_flag(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--num_shot", "3"]


def no_folder_for_json(place: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(place / "model"), "--json", str(tmp_path / "no" / "x.json")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (no_model, "no model and tokenizer there"),
        (unknown_subject, "'anatmy' is no subject of MMLU (did you mean anatomy"),
        (missing_files, "lacks dev/abstract_algebra_dev.csv and 107 more files"),
        (unknown_flag, "--num_shot is no option (did you mean --num_shots"),
        (no_folder_for_json, "is not there"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    words: Callable[[Path, Path], list[str]], line: str, place: Path, tmp_path: Path
) -> None:
    ended = launch(*words(place, tmp_path))
    told = [text for text in ended.stderr.splitlines() if text.startswith("error: ")]
    assert (ended.returncode, len(told)) == (2, 1), ended.stderr
    assert line in told[0] and "Traceback" not in ended.stderr
