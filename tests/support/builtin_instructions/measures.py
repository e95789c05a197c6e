"""Units, dates and clocks. Every function takes a random generator and returns one record."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date, datetime, timedelta
from fractions import Fraction

from tests.support.builtin_instructions.sums import decimal
from tests.support.builtin_instructions.table import Record, counted, pool, rows

# one, several, how many of the smaller unit it holds, smaller unit, how to say which of two is greater
UNITS = """
kilometer | kilometers | 1000 | meters | longer
meter | meters | 100 | centimeters | longer
hour | hours | 60 | minutes | longer
kilogram | kilograms | 1000 | grams | heavier
minute | minutes | 60 | seconds | longer
liter | liters | 1000 | milliliters | more
foot | feet | 12 | inches | longer
week | weeks | 7 | days | longer
yard | yards | 3 | feet | longer
ton | tons | 1000 | kilograms | heavier
day | days | 24 | hours | longer
centimeter | centimeters | 10 | millimeters | longer
pound | pounds | 16 | ounces | heavier
gallon | gallons | 4 | quarts | more
dozen | dozen | 12 | pieces | more
year | years | 12 | months | longer
"""
AMOUNTS = (2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 20, Fraction(3, 2), Fraction(5, 2))
MONTHS = pool("January February March April May June July August September October November December")
WEEKDAYS = pool("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")


def long_date(day: date) -> str:
    """A date as it is said in English, whatever the locale."""
    return f"{MONTHS[day.month - 1]} {day.day}, {day.year}"


def any_day(rng: random.Random) -> date:
    return date(2021, 1, 1) + timedelta(days=rng.randrange(2000))


def weeks_and_days(days: int) -> str:
    weeks, rest = divmod(days, 7)
    return " and ".join(counted(n, noun) for n, noun in ((weeks, "week"), (rest, "day")) if n)


def units(rng: random.Random) -> Record:
    one, big, factor, small, _ = rng.choice(rows(UNITS))
    amount = Fraction(rng.choice(AMOUNTS))
    few, many = decimal(amount), decimal(amount * int(factor))
    rule = f"One {one} has {factor} {small}"
    if rng.random() < 0.6:
        ask = rng.choice((f"Convert {few} {big} to {small}.", f"How many {small} are {few} {big}?"))
        check = f" To check: {many} ÷ {factor} = {few}." if rng.random() < 0.6 else ""
        return ask, "", f"{rule}, so {few} {big} are {few} × {factor} = {many} {small}.{check}"
    ask = rng.choice((f"Convert {many} {small} to {big}.", f"Express {many} {small} in {big}."))
    return ask, "", f"{rule}, so {many} {small} are {many} ÷ {factor} = {few} {big}."


def temperature(rng: random.Random) -> Record:
    celsius = 5 * rng.randint(-4, 20)
    product = celsius * 9 // 5
    steps = f"Multiply by 9/5 and add 32: {celsius} × 9/5 = {product}, and {product} + 32 = {product + 32}."
    return f"Convert {celsius} degrees Celsius to Fahrenheit.", "", f"{steps} So it is {product + 32} °F."


def compare(rng: random.Random) -> Record:
    _, big, factor, small, greater = rng.choice(rows(UNITS))
    few, step = rng.randint(2, 9), int(factor)
    whole = few * step
    many = whole + rng.choice((-1, 1)) * rng.randint(1, max(1, step // 2))
    winner, sign = (f"{few} {big}", "more") if whole > many else (f"{many} {small}", "less")
    ask = f"Which is {greater}: {few} {big} or {many} {small}?"
    return (
        ask,
        "",
        f"{few} {big} are {whole} {small}. {whole} is {sign} than {many}, so {winner} is {greater}.",
    )


def weekday_after(rng: random.Random) -> Record:
    start, days = rng.randrange(7), rng.randint(8, 60)
    end = WEEKDAYS[(start + days) % 7]
    ask = f"Today is {WEEKDAYS[start]}. Which day of the week will it be in {days} days?"
    return (
        ask,
        "",
        f"{days} days are {weeks_and_days(days)}. Counting on from {WEEKDAYS[start]}, it will be a {end}.",
    )


def date_shift(rng: random.Random) -> Record:
    day, days = any_day(rng), rng.randint(5, 45)
    way, sign = rng.choice((("before", -1), ("after", 1)))
    other = day + timedelta(days=sign * days)
    span = f"{days} days {way} {long_date(day)}"
    ask = rng.choice((f"Which date is {span}?", f"Find the date {span}."))
    return ask, "", f"{span} is {long_date(other)}, which is a {WEEKDAYS[other.weekday()]}."


def date_gap(rng: random.Random) -> Record:
    day, days = any_day(rng), rng.randint(9, 90)
    a, b = long_date(day), long_date(day + timedelta(days=days))
    ask = f"How many days is it from {a} to {b}?"
    return ask, "", f"From {a} to {b} it is {days} days, that is {weeks_and_days(days)}."


def date_format(rng: random.Random) -> Record:
    day = any_day(rng)
    note = "The ISO format gives the year, the month and the day, separated by hyphens."
    return f"Write the date {long_date(day)} in ISO format.", "", f"{day.isoformat()}\n{note}"


def leap_year(rng: random.Random) -> Record:
    year = rng.choice((1996, 2004, 2011, 2015, 2018, 2023, 2026, 2028, 2032, 2040))
    leap = year % 4 == 0
    reason = "can be divided by four, so it is a" if leap else "cannot be divided by four, so it is not a"
    ask = f"How many days does February have in the year {year}?"
    return ask, "", f"{year} {reason} leap year and February has {28 + leap} days."


def clock(rng: random.Random) -> Record:
    start = datetime(2024, 1, 1, rng.randint(6, 18), 5 * rng.randint(0, 11))
    length = 5 * rng.randint(5, 55)
    a, b = f"{start:%H:%M}", f"{start + timedelta(minutes=length):%H:%M}"
    parts = zip(divmod(length, 60), ("hour", "minute"), strict=True)
    span = " and ".join(counted(n, noun) for n, noun in parts if n)
    what = rng.choice(("film", "train ride", "meeting", "flight", "concert", "lecture"))
    if rng.random() < 0.5:
        ask = f"A {what} starts at {a} and lasts {span}. When does it end?"
        return ask, "", f"Adding {span} to {a} gives {b}, so the {what} ends at {b}."
    return (
        f"A {what} begins at {a} and ends at {b}. How long does it take?",
        "",
        f"From {a} to {b} it takes {span}.",
    )


def twelve_hours(rng: random.Random) -> Record:
    time = datetime(2024, 1, 1, rng.randint(13, 23), rng.randint(0, 59))
    long, short = f"{time:%H:%M}", f"{time.hour - 12}:{time:%M} p.m."
    if rng.random() < 0.5:
        return (
            f"Write {long} in 12-hour time.",
            "",
            f"{long} is {short}, since {time.hour} - 12 = {time.hour - 12}.",
        )
    answer = f"In 24-hour time it is {long}. For hours after noon, add 12: {time.hour - 12} + 12 = {time.hour}."
    return f"Write {short} in 24-hour time.", "", answer


TASKS: dict[Callable[[random.Random], Record], int] = {
    units: 32,
    temperature: 8,
    compare: 14,
    weekday_after: 13,
    date_shift: 12,
    date_gap: 10,
    date_format: 6,
    leap_year: 6,
    clock: 16,
    twelve_hours: 8,
}
