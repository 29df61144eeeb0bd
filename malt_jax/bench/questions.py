"""Word problems of GSM8K's form and length, so that the benchmark needs no data set."""

from __future__ import annotations

from malt_jax.tasks.base import Question

_TEXTS = (
    "Mara bakes {a} trays of rolls each morning and every tray holds {b} rolls. She keeps {c} "
    "rolls for her family and sells the others at $2 each. How many dollars does she make in a "
    "week of seven days?",
    "A bus leaves the depot with {a} passengers. At the first stop {c} get off and {b} get on, "
    "and at the second stop half of those on board get off. How many passengers are left?",
    "Tom is {c} years older than Lena. In {b} years the sum of their ages will be {a}{b}. How old "
    "is Lena now?",
    "A garden has {a} rows of beans with {b} plants in a row, and {c} rows of tomatoes with {a} "
    "plants in a row. A storm destroys a quarter of all plants. Each of those left yields 3 "
    "pounds. How many pounds are harvested?",
    "Nadia reads {b} pages on Monday and twice as many on Tuesday. On Wednesday she reads {c} "
    "pages fewer than on Tuesday, and the book has {a}00 pages. How many pages are left to read?",
    "A printer makes {a} pages a minute and another one {b} pages a minute. Both work on an order "
    "of {c}00 pages, but the second one begins 5 minutes later. How many minutes does the whole "
    "order take?",
    "Sam buys {c} notebooks at ${b} each and {a} pens at $1.50 each. He pays with two $100 bills "
    "and gives half of his change to his sister. How much does she get?",
    "In a school of {a}0 pupils, {b}% walk to school, {c} come by bike, and the others ride one "
    "of 4 buses in equal numbers. How many pupils are on each bus?",
)


def word_problems(count: int) -> list[Question]:
    """Generated questions without reference answers, which the benchmark does not need."""
    questions = []
    for i in range(count):
        # `%` binds like `*`: `7 * i % 29` is `(7 * i) % 29`. The three periods have no common
        # factor, so that questions repeat late, and every run has the same ones.
        numbers = {"a": 12 + 7 * i % 29, "b": 15 + 11 * i % 23, "c": 4 + 5 * i % 9}
        questions.append(Question(f"B{i}", _TEXTS[i % len(_TEXTS)].format(**numbers), ""))
    return questions
