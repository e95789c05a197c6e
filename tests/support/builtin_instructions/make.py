"""Makes the built-in instruction set: 1,200 short examples in Alpaca format, one JSON object per line.

    python -m tests.support.builtin_instructions.make            writes apt_ds/data/builtin/instructions.jsonl
    python -m tests.support.builtin_instructions.make --check    only says whether that file is the one made here

Hand-written tables give the language, small functions the tasks with computed answers. The result depends
on nothing but this code: the same bytes every time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator

from apt_ds.data.conversations import builtin_path
from tests.support.builtin_instructions import coding, knowledge, language, living, measures, sums, texts
from tests.support.builtin_instructions.table import Record, phrased, questions, rows

SEED = 20
SIZE = 1200
PATH = builtin_path()

ASKED_AS_WRITTEN = (
    knowledge.SCIENCE, knowledge.GEOGRAPHY, knowledge.HISTORY,
    living.EMAILS, living.VERSE, living.TRAVEL, living.HEALTH, living.RIDDLES, living.HOUSEHOLD,
    coding.PYTHON, coding.SQL, coding.SHELL,
)  # fmt: skip
DEFINITIONS_ASKED = ("Define '{}'.", "What does the term '{}' mean?", "Explain the meaning of '{}'.")
ASKED_IN_TURN = (
    (language.FORMAL, language.FORMAL_ASKED), (language.PAST, language.PAST_ASKED),
    (language.PASSIVE, language.PASSIVE_ASKED), (language.GRAMMAR, language.GRAMMAR_ASKED),
    (language.SENTIMENT, language.SENTIMENT_ASKED), (language.SUMMARY, language.SUMMARY_ASKED),
    (language.HEADLINES, language.HEADLINES_ASKED), (language.SYNONYMS, language.SYNONYMS_ASKED),
    (language.IDIOMS, language.IDIOMS_ASKED), (language.ODD_ONE_OUT, language.ODD_ONE_OUT_ASKED),
    (language.CLAIMS, language.CLAIMS_ASKED), (language.READING, language.READING_ASKED),
    (language.BLANKS, language.BLANKS_ASKED), (living.RECIPES, living.RECIPES_ASKED),
    (living.PLANS, living.PLANS_ASKED), (living.CHILDREN, living.CHILDREN_ASKED),
    (living.PROS_AND_CONS, living.PROS_AND_CONS_ASKED), (living.OPENINGS, living.OPENINGS_ASKED),
    (coding.REGEX, coding.REGEX_ASKED), (coding.TERMS, coding.TERMS_ASKED),
    (knowledge.DEFINITIONS, DEFINITIONS_ASKED),
)  # fmt: skip


def table_records(rng: random.Random) -> Iterator[Record]:
    """The records of all hand-written tables."""
    for text in ASKED_AS_WRITTEN:
        yield from questions(text)
    for text, phrasings in ASKED_IN_TURN:
        yield from phrased(text, phrasings, rng)
    for tongue in ("French", "Spanish", "German", "Italian"):
        pairs = [(text, translation) for spoken, text, translation in rows(language.TRANSLATIONS) if spoken == tongue]
        for (a, a_out), (b, b_out) in zip(pairs, pairs[1:] + pairs[:1], strict=True):
            ask = rng.choice((f"Translate into {tongue}.", f"How do you say this in {tongue}?"))
            yield ask, f"{a} {b}", f"{a_out} {b_out}"
    for name, symbol, number, use in rows(knowledge.ELEMENTS):
        facts = f"{name.capitalize()} has the chemical symbol {symbol} and the atomic number {number}. {use}."
        yield rng.choice((f"Tell me about the element {name}.", f"What is {name}?")), "", facts
    for name, place, note in rows(knowledge.PLANETS):
        yield f"Describe the planet {name}.", "", f"{name} is {place} planet from the Sun. {note}."
    for country in rows(knowledge.COUNTRIES):
        yield from country_records(country, rng)


def country_records(country: tuple[str, ...], rng: random.Random) -> list[Record]:
    """Two of the questions that can be asked about a country."""
    name, capital, continent, tongue, currency = country
    facts = f"{name} lies in {continent}. Its capital is {capital}, the main language is {tongue},"
    asked = [
        (f"What is the capital of {name}, and which language is mainly spoken there?", "",
         f"The capital of {name} is {capital}, and the main language is {tongue}."),
        (f"Give some basic facts about {name}.", "", f"{facts} and people pay with the {currency}."),
        ("List continent, capital, language and currency of this country.", name,
         f"Continent: {continent}\nCapital: {capital}\nLanguage: {tongue}\nCurrency: {currency}"),
        (f"Which country has the capital {capital}, and what is its currency?", "",
         f"{capital} is the capital of {name}. The currency there is the {currency}."),
    ]  # fmt: skip
    return rng.sample(asked, 2)


def computed_records(tasks: dict[Callable[[random.Random], Record], int], rng: random.Random) -> Iterator[Record]:
    """As many different records of each computed task as it asks for."""
    for task, count in tasks.items():
        records: dict[tuple[str, str], Record] = {}
        while len(records) < count:
            record = task(rng)
            records.setdefault(record[:2], record)
        yield from records.values()


def make() -> str:
    """The text of the instruction set, in a shuffled order."""
    rng = random.Random(SEED)
    records = [*table_records(rng), *computed_records(sums.TASKS | measures.TASKS | texts.TASKS, rng)]
    assert len({record[:2] for record in records}) == len(records) == SIZE, len(records)
    rng.shuffle(records)
    keys = ("instruction", "input", "output")
    return "".join(json.dumps(dict(zip(keys, record, strict=True)), ensure_ascii=False) + "\n" for record in records)


def main() -> int:
    """Writes or checks the file; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the built-in instruction set.")
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    text = make().encode()
    if not parser.parse_args().check:
        PATH.write_bytes(text)
        return 0
    if PATH.is_file() and PATH.read_bytes() == text:
        return 0
    print(
        f"{PATH} differs from what is made here; run python -m tests.support.builtin_instructions.make", file=sys.stderr
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
