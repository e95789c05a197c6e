"""Sorting, extracting, formatting and reasoning over text; answers follow from how the text was made.

Every function takes a random generator and returns one record.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.support.builtin_instructions.measures import WEEKDAYS, any_day, long_date
from tests.support.builtin_instructions.table import Record, pool, rows

FIRST_NAMES = pool("Amelia Bruno Carmen Dmitri Esther Felipe Gwen Hassan Irene Jamal Katya Liam Mira Nils Paulo")
LAST_NAMES = pool("Abbott Becker Costa Duval Evans Fischer Garcia Hansen Ivanova Jensen Kim Lopez Moreau Novak Osei")
CITIES = pool("Lisbon Oslo Toronto Nairobi Vienna Seoul Lima Dublin Prague Boston Kyoto Athens Perth Geneva")
JOBS = pool("nurse architect teacher baker engineer librarian gardener translator dentist pilot chemist farmer")
HOBBIES = pool("chess sailing painting running pottery cycling singing fishing photography dancing")
ANIMALS = pool("tiger rabbit elephant zebra otter giraffe beaver falcon hedgehog iguana lobster moose newt panda")
FRUITS = pool("apricot banana cherry fig grape kiwi lemon mango orange papaya quince raspberry")
TOOLS = pool("axe brush chisel drill file hammer ladder nail pliers saw shovel wrench")
WORDS = pool("river mountain candle pocket summer window library garden thunder biscuit journey orchard lantern")
GROUPS = {"animals": ANIMALS, "fruits": FRUITS, "tools": TOOLS, "cities": CITIES}

# more, most, least
ORDERS = """
taller | tallest | shortest
older | oldest | youngest
faster | fastest | slowest
richer | richest | poorest
stronger | strongest | weakest
"""
# a group, some of its members, what all of the group do
SYLLOGISMS = """
mammals | whales | breathe air
birds | penguins | lay eggs
metals | copper and iron | conduct heat
squares | the fields of a chessboard | have four equal sides
students in this class | the twins | speak Spanish
trains on this line | the night trains | stop in Lyon
insects | ants | have six legs
planets | Mars and Venus | orbit a star
"""


class Person(NamedTuple):
    name: str
    age: int
    city: str
    job: str


def person(rng: random.Random) -> Person:
    name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    return Person(name, rng.randint(19, 70), rng.choice(CITIES), rng.choice(JOBS))


def fields(who: Person, *keys: str) -> dict[str, str | int]:
    return {key: value for key, value in who._asdict().items() if key in keys}


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    if noun.endswith("y"):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith("go") else "s")


def listed(items: Sequence[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def sort_numbers(rng: random.Random) -> Record:
    values = rng.sample(range(rng.choice((1, 1, -30)), 100), rng.randint(6, 9))
    falling = rng.random() < 0.4
    order = "largest to smallest" if falling else "smallest to largest"
    ask = rng.choice((f"Sort these numbers from {order}.", f"Put the following numbers in order from {order}."))
    done = ", ".join(map(str, sorted(values, reverse=falling)))
    return ask, ", ".join(map(str, values)), rng.choice((done, f"From {order}: {done}."))


def sort_words(rng: random.Random) -> Record:
    words = rng.sample(rng.choice((ANIMALS, FRUITS, TOOLS, FIRST_NAMES, CITIES, WORDS)), rng.randint(6, 9))
    if rng.random() < 0.3:
        ask = "Sort the words by length, the shortest first. Words of equal length come in alphabetical order."
        done = sorted(words, key=lambda word: (len(word), word))
        return ask, ", ".join(words), ", ".join(f"{word} ({len(word)})" for word in done)
    ask = rng.choice(("Sort these words alphabetically.", "Arrange the list in alphabetical order."))
    return ask, ", ".join(words), ", ".join(sorted(words))


def group_words(rng: random.Random) -> Record:
    a, b = rng.sample(list(GROUPS), 2)
    mixed = rng.sample(GROUPS[a], 3) + rng.sample(GROUPS[b], 3)
    rng.shuffle(mixed)
    lines = (f"{name.capitalize()}: {', '.join(w for w in mixed if w in GROUPS[name])}" for name in (a, b))
    return f"Sort these words into the groups {a} and {b}.", ", ".join(mixed), "\n".join(lines)


def letters(rng: random.Random) -> Record:
    word = rng.choice(WORDS + ANIMALS + FRUITS)
    vowels = [letter for letter in word if letter in "aeiou"]
    kind = rng.choice(("reverse", "length", "vowels" if len(vowels) > 1 else "length"))
    if kind == "reverse":
        answer = f"The letters of '{word}' are {', '.join(word)}. Backwards they give '{word[::-1]}'."
        return f"Write the word '{word}' backwards.", "", answer
    if kind == "vowels":
        answer = f"The vowels in '{word}' are {listed(vowels)}, so there are {len(vowels)}."
        return f"How many vowels are in the word '{word}'?", "", answer
    answer = f"Spelled out, '{word}' is {'-'.join(word)}, which makes {len(word)} letters."
    return f"How many letters does the word '{word}' have?", "", answer


def sentence_parts(rng: random.Random) -> Record:
    nouns = rng.sample(WORDS, 3)
    text = rng.choice(("I dreamed of a {}, a {} and a very old {}.", "She carefully drew a {}, a tiny {} and a {}."))
    text = text.format(*nouns).replace(" a orchard", " an orchard")
    words = text.rstrip(".").split()
    return rng.choice(
        (
            ("Write this sentence in capital letters.", text, text.upper()),
            (
                "Count the words of this sentence.",
                text,
                f"From '{words[0]}' to '{words[-1]}' there are {len(words)} words.",
            ),
            ("List the nouns in this sentence.", text, f"The nouns are {listed(nouns)}."),
        )
    )


def extract_person(rng: random.Random) -> Record:
    who = person(rng)
    if rng.random() < 0.5:
        ask = "Extract name, age, city and job from the sentence as JSON."
        text = f"{who.name}, {who.age}, works as {article(who.job)} in {who.city}."
        return ask, text, json.dumps(fields(who, "name", "age", "city", "job"))
    ask = "Turn this introduction into a JSON object with the keys name, age and city."
    text = f"My name is {who.name}. I am {who.age} years old and live in {who.city}."
    return ask, text, json.dumps(fields(who, "name", "age", "city"))


def extract_meeting(rng: random.Random) -> Record:
    who, day, hour, room = person(rng), long_date(any_day(rng)), rng.randint(8, 17), rng.randint(101, 420)
    subject = rng.choice(("the budget", "the new website", "the survey results", "the schedule"))
    text = f"{who.name} will present {subject} on {day} at {hour}:30 in room {room}."
    ask = rng.choice(("Extract the date, the time and the room.", "When and where does this meeting take place?"))
    return ask, text, f"Date: {day}\nTime: {hour}:30\nRoom: {room}"


def extract_order(rng: random.Random) -> Record:
    first, second = map(plural, rng.sample(FRUITS, 2))
    a, b, number, day = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1000, 9999), rng.choice(WEEKDAYS)
    text = f"Order {number}: {a} boxes of {first} and {b} boxes of {second}, to be delivered on {day}."
    delivery = f"The order number is {number}, and the delivery is on {day}."
    return rng.choice(
        (
            (
                "Convert the ordered items to a JSON object with amounts.",
                text,
                json.dumps({first: a, second: b}),
            ),
            ("What is the order number, and on which day is it delivered?", text, delivery),
            (
                "How many boxes were ordered in total?",
                text,
                f"{a} + {b} = {a + b}, so {a + b} boxes were ordered.",
            ),
        )
    )


def extract_contact(rng: random.Random) -> Record:
    who, phone = person(rng), f"555-{rng.randint(1000, 9999)}"
    mail = f"{who.name.split()[1].lower()}@{rng.choice(('example.com', 'mail.example.org', 'example.net'))}"
    text = f"You can reach {who.name} at {phone} or by email at {mail} during office hours."
    if rng.random() < 0.5:
        return "Extract the email address from the text.", text, mail
    return "List the contact details given in this text.", text, f"Phone: {phone}\nEmail: {mail}"


def convert_csv(rng: random.Random) -> Record:
    people = [person(rng), person(rng)]
    keys = rng.choice((("name", "city"), ("name", "age"), ("city", "job")))
    cells = [[str(value) for value in fields(who, *keys).values()] for who in people]
    text = "\n".join(",".join(row) for row in (keys, *cells))
    if rng.random() < 0.5:
        return "Convert this CSV to JSON.", text, json.dumps([fields(who, *keys) for who in people])
    table = (f"| {' | '.join(row)} |" for row in (keys, ("---",) * len(keys), *cells))
    return "Turn this CSV into a Markdown table.", text, "\n".join(table)


def read_json(rng: random.Random) -> Record:
    who, hobbies = person(rng), rng.sample(HOBBIES, 2)
    text = json.dumps({**fields(who, "name", "job"), "hobbies": hobbies})
    if rng.random() < 0.5:
        ask = "Write one sentence with the facts of this JSON object."
        return ask, text, f"{who.name} works as {article(who.job)} and enjoys {listed(hobbies)}."
    ask = "Which hobbies does the person in this JSON object have?"
    return ask, text, f"{who.name} has two hobbies: {listed(hobbies)}."


def ranking(rng: random.Random) -> Record:
    a, b, c = rng.sample(FIRST_NAMES, 3)
    more, most, least = rng.choice(rows(ORDERS))
    facts = [f"{a} is {more} than {b}.", f"{b} is {more} than {c}."]
    rng.shuffle(facts)
    asked, answer = rng.choice(((most, a), (least, c)))
    order = f"The order from {most} to {least} is {a}, {b}, {c}."
    return f"{' '.join(facts)} Who is the {asked}?", "", f"{order} Therefore {answer} is the {asked}."


def syllogism(rng: random.Random) -> Record:
    group, members, trait = rng.choice(rows(SYLLOGISMS))
    ask = "Does the conclusion follow? Answer yes or no and explain."
    if rng.random() < 0.6:
        start = members[0].upper() + members[1:]
        text = f"All {group} {trait}. {start} are {group}. Therefore {members} {trait}."
        return ask, text, f"Yes. If all {group} {trait} and {members} are among them, they must {trait} too."
    text = f"All {group} {trait}. These things {trait}. Therefore these things are {group}."
    return (
        ask,
        text,
        f"No. Other things may {trait} without being {group}, so the conclusion does not follow.",
    )


TASKS: dict[Callable[[random.Random], Record], int] = {
    sort_numbers: 18,
    sort_words: 18,
    group_words: 12,
    letters: 13,
    sentence_parts: 12,
    extract_person: 16,
    extract_meeting: 12,
    extract_order: 14,
    extract_contact: 10,
    convert_csv: 12,
    read_json: 12,
    ranking: 16,
    syllogism: 10,
}
