"""Questions for language models: their form, their order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_ds.config.errors import UserError
from apt_ds.data import choice_questions
from apt_ds.data.choice_questions import Question, Task, detokenized, load
from tests.support.local_tasks import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("local"))


def test_the_first_questions_are_those_of_any_limit(folder: Path) -> None:
    whole, few = load(str(folder)), load(str(folder), 3)
    assert [task.name for task in whole] == list(choice_questions.TASKS)
    for all_of_it, part in zip(whole, few, strict=True):
        assert part.questions == all_of_it.questions[:3] and len(set(all_of_it.questions)) > 3
    assert load(str(folder)) == whole


def test_classes_are_words_after_solved_examples(folder: Path) -> None:
    sst2 = next(task for task in load(str(folder)) if task.name == "sst2")
    assert len(sst2.questions) == 9
    for question in sst2.questions:
        assert question.choices == (" negative", " positive")
        assert question.context.endswith("\nSentiment:") and question.context.count("Review: ") == 5
        # both classes are shown, in turn
        assert question.context.count(" negative\n") == question.context.count(" positive\n") == 2


def test_the_next_sentence_is_among_sentences_of_other_articles(folder: Path) -> None:
    questions = choice_questions.next_sentence(folder)
    text = (folder / "plain" / "wikipedia.txt").read_text(encoding="utf8")
    articles = [block for block in text.split("\n\n") if block != "title"]
    assert len(questions) == 10 and {question.answer for question in questions} > {0, 1}
    for question in questions:
        place = next(i for i, article in enumerate(articles) if question.context in article)
        # the first half is free for calibration
        assert place >= 10
        right = question.choices[question.answer]
        assert f"{question.context}{right}" in articles[place] and len(set(question.choices)) == 4
        others = [choice for choice in question.choices if choice != right]
        assert all(choice.startswith(" The ") and choice not in articles[place] for choice in others)


def test_the_last_word_has_occurred_before(folder: Path) -> None:
    questions = choice_questions.last_word(folder)
    assert len(questions) == 7
    for question in questions:
        (word,) = question.choices
        assert word in question.context and not question.context.endswith((word, ".")) and question.answer == 0


def test_wikitext_is_put_together() -> None:
    text = ' The 2 @.@ 7 kg ( 60 cm ) lobster \'s claws , " red @-@ tipped " , cost 1 @,@ 000 . '
    assert detokenized(text) == 'The 2.7 kg (60 cm) lobster\'s claws, "red-tipped", cost 1,000.'


def test_chance_is_a_draw_or_the_most_frequent_answer() -> None:
    words = (" no", " yes")
    assert Task("a", tuple(Question("", words, answer) for answer in (0, 1, 1, 1))).chance == 0.75
    assert Task("b", tuple(Question("", (f" {i}", " x", " y", " z")) for i in range(8))).chance == 0.25
    assert Task("c", (Question("", (" a",)), Question("", (" b",)), Question("", (" b",)))).chance == pytest.approx(
        2 / 3
    )


def test_missing_data_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data_dir 'nowhere' is not a folder\. Give one with sst2/"):
        load("nowhere")
    write_folder(tmp_path / "few")
    (tmp_path / "few" / "plain" / "wikipedia.txt").write_text("short\n", encoding="utf8")
    with pytest.raises(UserError, match="has no question for next_sentence"):
        load(str(tmp_path / "few"))
    (tmp_path / "few" / "plain" / "wikipedia.txt").unlink()
    with pytest.raises(UserError, match=r"^--data_dir '.*few' lacks plain/wikipedia\.txt, which the suite asks from"):
        load(str(tmp_path / "few"))
    with pytest.raises(UserError, match=r"too few training examples of a class\. Give at least 14 of each"):
        choice_questions.balanced("sst2", tmp_path / "few" / "sst2", 14)
