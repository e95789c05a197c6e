"""Arithmetic with worked answers. Every function takes a random generator and returns one record."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

from tests.support.builtin_instructions.table import Record, counted, pool, rows

# name, pronoun, possessive
PEOPLE = """
Ana | she | her
Ben | he | his
Chloe | she | her
David | he | his
Elif | she | her
Farid | he | his
Greta | she | her
Hiro | he | his
Ines | she | her
Jonas | he | his
Kemi | she | her
Luca | he | his
Maya | she | her
Noah | he | his
Olga | she | her
Pedro | he | his
"""
PRICES = """
pencil | 2
notebook | 4
mug | 7
belt | 12
lamp | 25
ball | 9
puzzle | 14
candle | 5
shirt | 16
blanket | 18
basket | 11
"""
THINGS = pool("apples stamps marbles books stickers shells cookies postcards buttons photos walnuts beads")
FOODS = """
flour | grams | 300
rice | grams | 180
milk | milliliters | 240
sugar | grams | 120
pasta | grams | 360
broth | milliliters | 600
"""
LISTS_OF_VALUES = """
distances | kilometers
test scores | points
waiting times | minutes
plant heights | centimeters
parcel weights | kilograms
"""


def decimal(value: Fraction) -> str:
    """A number with at most two decimals, without needless zeros."""
    return f"{float(value):.2f}".rstrip("0").rstrip(".")


def bags(rng: random.Random) -> Record:
    name, pronoun, _ = rng.choice(rows(PEOPLE))
    item, size, count = rng.choice(THINGS), rng.randint(3, 12), rng.randint(3, 9)
    full = size * count
    given = rng.randint(2, full - 2)
    ask = f"{name} has {count} bags with {size} {item} each and gives away {given} {item}. How many are left?"
    first = f"At first {name} has {count} × {size} = {full} {item}."
    return (
        ask,
        "",
        f"{first} After giving away {given}, {pronoun} has {full} - {given} = {full - given} left.",
    )


def shopping(rng: random.Random) -> Record:
    name, pronoun, _ = rng.choice(rows(PEOPLE))
    (first, a), (second, b) = rng.sample(rows(PRICES), 2)
    count = rng.randint(2, 5)
    total = count * int(a) + int(b)
    paid = (total // 50 + 1) * 50
    prices = f"A {first} costs {a} dollars and a {second} costs {b} dollars."
    ask = f"{name} buys {count} {first}s and one {second}. What change does {pronoun} get from {paid} dollars?"
    answer = f"The goods cost {count} × {a} + {b} = {total} dollars. The change is"
    return f"{prices} {ask}", "", f"{answer} {paid} - {total} = {counted(paid - total, 'dollar')}."


def journey(rng: random.Random) -> Record:
    vehicle = rng.choice(("train", "bus", "car", "ferry", "cyclist", "truck"))
    slow = {"cyclist": rng.randint(12, 24), "ferry": rng.randint(20, 45)}
    speed, hours = slow.get(vehicle, 10 * rng.randint(5, 12)), rng.randint(2, 7)
    way = speed * hours
    if rng.random() < 0.5:
        ask = f"A {vehicle} travels at {speed} kilometers per hour. How far does it get in {hours} hours?"
        return (
            ask,
            "",
            f"Distance is speed times time: {speed} × {hours} = {way}. It covers {way} kilometers.",
        )
    ask = f"A {vehicle} needs {hours} hours for {way} kilometers. What is the average speed?"
    answer = f"Speed is distance divided by time: {way} ÷ {hours} = {speed}."
    return ask, "", f"{answer} The average speed is {speed} kilometers per hour."


def sharing(rng: random.Random) -> Record:
    item = rng.choice(THINGS)
    children, each, rest = rng.randint(3, 9), rng.randint(4, 12), rng.randint(0, 2)
    total = children * each + rest
    over = f"{rest} {'is' if rest == 1 else 'are'} left over" if rest else "nothing is left over"
    ask = f"{children} children share {total} {item} equally. How many does each child get?"
    division = f"{total} divided by {children} is {each}{f' with a remainder of {rest}' if rest else ''}."
    return ask, "", f"{division} Each child gets {each} {item}, and {over}."


def ages(rng: random.Random) -> Record:
    name, _, possessive = rng.choice(rows(PEOPLE))
    age, gap, years = rng.randint(6, 30), rng.choice((3, 4, 5, 7, 9, 22, 25, 28, 31)), rng.randint(2, 15)
    relative = "sister" if gap < 15 else "mother"
    ask = f"{name} is {age} years old, and {possessive} {relative} is {gap} years older."
    answer = f"The {relative} is now {age} + {gap} = {age + gap} years old. In {years} years she will be"
    question = f"How old will the {relative} be in {years} years?"
    return f"{ask} {question}", "", f"{answer} {age + gap} + {years} = {age + gap + years}."


def wages(rng: random.Random) -> Record:
    name, pronoun, _ = rng.choice(rows(PEOPLE))
    pay, hours, weeks = rng.randint(9, 20), rng.randint(4, 12), rng.randint(2, 6)
    one = pay * hours
    ask = f"{name} earns {pay} dollars an hour and works {hours} hours a week."
    answer = f"In one week {name} earns {pay} × {hours} = {one} dollars,"
    return (
        f"{ask} How much does {pronoun} earn in {weeks} weeks?",
        "",
        f"{answer} so in {weeks} weeks {pronoun} earns {weeks} × {one} = {weeks * one} dollars.",
    )


def scaling(rng: random.Random) -> Record:
    few, many = rng.choice(((2, 6), (4, 6), (4, 10), (3, 12), (2, 5), (4, 12), (6, 9)))
    food, unit, amount = rng.choice(rows(FOODS))
    one = Fraction(int(amount), few)
    ask = f"A recipe for {few} people needs {amount} {unit} of {food}. How much is needed for {many} people?"
    answer = f"One person needs {amount} ÷ {few} = {decimal(one)} {unit}, so {many} people need"
    return ask, "", f"{answer} {many} × {decimal(one)} = {decimal(many * one)} {unit} of {food}."


def percent(rng: random.Random) -> Record:
    rate, whole = rng.choice((5, 10, 15, 20, 25, 30, 40, 50)), 20 * rng.randint(2, 20)
    part = whole * rate // 100
    item = rng.choice(("coat", "table", "bicycle", "phone", "tent", "camera", "printer"))
    if rng.random() < 0.6:
        ask = f"A {item} costs {whole} dollars. What does it cost after a discount of {rate} percent?"
        answer = f"{rate} percent of {whole} is {part}. The new price is"
        return ask, "", f"{answer} {whole} - {part} = {whole - part} dollars."
    answer = f"{rate}% of {whole} is {whole} × {rate} ÷ 100 = {part}."
    return (
        f"What is {rate}% of {whole}? Show how to find it.",
        "",
        f"{answer} Percent means parts of a hundred.",
    )


def average(rng: random.Random) -> Record:
    what, unit = rng.choice(rows(LISTS_OF_VALUES))
    count, mean = rng.choice((3, 4, 5)), rng.randint(32, 60)
    values = [mean + rng.randint(-6, 6) for _ in range(count - 1)]
    values.append(mean * count - sum(values))
    total = f"The sum is {' + '.join(map(str, values))} = {sum(values)}."
    given = ", ".join(f"{value} {unit}" for value in values)
    return (
        f"Find the average of these {what}.",
        given,
        f"{total} Divided by {count}, the average is {mean} {unit}.",
    )


def area(rng: random.Random) -> Record:
    place = rng.choice(("garden", "room", "field", "carpet", "wall", "playground", "courtyard"))
    a, b = rng.randint(3, 12), rng.randint(13, 25)
    ask = f"A rectangular {place} is {b} meters long and {a} meters wide."
    if rng.random() < 0.5:
        answer = f"The area of a rectangle is length times width: {b} × {a} = {a * b} square meters."
        return f"{ask} What is its area?", "", answer
    answer = f"The perimeter is twice the sum of length and width: 2 × ({b} + {a}) = {2 * (a + b)} meters."
    return f"{ask} What is its perimeter?", "", answer


def sequence(rng: random.Random) -> Record:
    start, step, base = rng.randint(1, 12), rng.randint(2, 9), rng.choice((2, 3))
    terms, why = rng.choice(
        (
            ([start + i * step for i in range(6)], f"Each number is {step} more than the one before"),
            ([90 + start - i * step for i in range(6)], f"Each number is {step} less than the one before"),
            ([start * base**i for i in range(6)], f"Each number is {base} times the one before"),
            (
                [(start + i) ** 2 for i in range(6)],
                f"These are the squares of {start}, {start + 1} and so on",
            ),
        )
    )
    ask = rng.choice(("Which number comes next?", "Continue the sequence and explain the rule."))
    return ask, ", ".join(map(str, terms[:5])), f"{why}, so the next number is {terms[5]}."


def equation(rng: random.Random) -> Record:
    a, x, b, letter = rng.randint(2, 9), rng.randint(2, 12), rng.randint(1, 20), rng.choice("xyn")
    steps = f"Subtract {b} from both sides: {a}{letter} = {a * x}. Divide by {a}: {letter} = {x}."
    return f"Solve the equation {a}{letter} + {b} = {a * x + b}.", "", steps


def prime(rng: random.Random) -> Record:
    n = rng.randrange(21, 200, 2)
    tried = [p for p in (2, 3, 5, 7, 11, 13) if p * p <= n]
    factor = next((p for p in tried if n % p == 0), 0)
    ask = f"Is {n} a prime number?"
    if factor:
        return (
            ask,
            "",
            f"No, {n} is not prime, because it can be divided by {factor}: {n} = {factor} × {n // factor}.",
        )
    reason = f"It is enough to try {', '.join(map(str, tried))}, because the square of the next prime exceeds {n}."
    return ask, "", f"Yes. {reason} None of these divides {n}, so it is prime."


def binary(rng: random.Random) -> Record:
    n = rng.randint(5, 120)
    powers = [str(1 << i) for i in range(7, -1, -1) if n >> i & 1]
    if rng.random() < 0.5:
        answer = f"As a sum of powers of two, {n} is {' + '.join(powers)}, so in binary it is written {n:b}."
        return f"Write the number {n} in binary.", "", answer
    answer = f"Adding the powers of two where a 1 stands gives {' + '.join(powers)} = {n}."
    return (
        f"Which decimal number is {n:b} in binary?",
        "",
        answer if len(powers) > 1 else f"{n:b} is {n}, a power of two.",
    )


def fractions(rng: random.Random) -> Record:
    b, d = rng.sample(range(2, 9), 2)
    a, c = rng.randrange(1, b), rng.randrange(1, d)
    common = math.lcm(b, d)
    left, right = a * common // b, c * common // d
    raw, total = f"{left + right}/{common}", Fraction(a, b) + Fraction(c, d)
    rest = "." if str(total) == raw else f", which equals {total}."
    answer = f"With the common denominator {common} the sum is {left}/{common} + {right}/{common} = {raw}{rest}"
    return f"Add the fractions {a}/{b} and {c}/{d}.", "", answer


def chance(rng: random.Random) -> Record:
    red, blue = rng.randint(2, 9), rng.randint(2, 9)
    p, raw = Fraction(red, red + blue), f"{red}/{red + blue}"
    ask = f"A bag holds {red} red and {blue} blue balls. What is the probability of drawing a red ball?"
    shorter = "" if str(p) == raw else f" = {p}"
    answer = f"Of the {red + blue} balls {red} are red, so the probability is {raw}{shorter}"
    return ask, "", f"{answer}, or about {round(100 * p)} percent."


def roman(rng: random.Random) -> Record:
    n = rng.choice((rng.randint(13, 99), rng.randint(1500, 2024)))
    signs: list[str] = []
    parts: list[int] = []
    values = (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1)
    for sign, value in zip(pool("M CM D CD C XC L XL X IX V IV I"), values, strict=True):
        count = (n - sum(parts)) // value
        signs += [sign] * count
        parts += [value] * count
    text, steps = "".join(signs), f"{' + '.join(signs)} is {' + '.join(map(str, parts))}"
    if len(parts) < 2:
        return roman(rng)
    if rng.random() < 0.5:
        return (
            f"Which number is written as {text} in Roman numerals?",
            "",
            f"{steps}, so {text} stands for {n}.",
        )
    return f"Write {n} in Roman numerals.", "", f"{steps} = {n}, so the number is written {text}."


TASKS: dict[Callable[[random.Random], Record], int] = {
    bags: 14,
    shopping: 15,
    journey: 16,
    sharing: 10,
    ages: 12,
    wages: 12,
    scaling: 12,
    percent: 18,
    average: 12,
    area: 14,
    sequence: 18,
    equation: 10,
    prime: 10,
    binary: 8,
    fractions: 12,
    chance: 10,
    roman: 10,
}
