"""The number grader: what counts as 18, and that nothing else does."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.tasks.base import Question
from malt_jax.tasks.graders.number import NumberGrader, value_of
from malt_jax.tasks.graders.numerals import canonical

GRADER = NumberGrader()

RIGHT = [  # (reference, text)
    # the published form and its surroundings
    ("18", "9 * 2 = 18\n#### 18"),
    ("18", "#### 18."),
    ("18", "####18"),
    ("18", "#### **18**"),
    ("18", "#### $18"),
    ("18", "#### 18 dollars"),
    ("18", "#### 18%"),
    ("18", "#### 18\n"),
    ("18", "#### 18 (9 eggs at $2 each)"),
    ("18", "#### Final Answer\n18"),
    ("18", "#### Step 1\nShe has 9.\n#### Step 2\n9 * 2 = 18\n\nThe answer is 18."),
    ("18", "She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18"),
    # prose
    ("18", "The answer is 18."),
    ("18", "The answer is: 18"),
    ("18", "the answer is 18 dollars."),
    ("18", "The final answer is $18$."),
    ("18", "**Answer:** 18"),
    ("18", "Answer: 18"),
    ("18", "Answer:\n\n18"),
    ("18", "The answer is **18**."),
    ("18", "Therefore, the answer to the question is 18."),
    ("18", "The answer is 9 * 2 = 18."),
    ("18", "The answer is x = 18."),
    ("18", "The answer is $18 per day."),
    ("18", "The answer is 18, because 9 times 2 is 18."),
    ("18", "The answer is 18!"),
    ("18", "The answer is approximately 18."),
    ("18", "<answer>18</answer>"),
    ("18", "So our answer is 18."),
    # boxes
    ("18", r"\boxed{18}"),
    ("18", r"Thus $\boxed{18}$."),
    ("18", r"The answer is $\boxed{18}$."),
    ("18", r"\boxed{18\text{ dollars}}"),
    ("18", r"\boxed{\$18}"),
    ("18", r"\boxed{x = 18}"),
    ("18", r"\fbox{18}"),
    ("18", r"\boxed{18\%}"),
    # the last statement counts
    ("18", r"\boxed{17} no wait \boxed{18}"),
    ("18", "#### 17\nThat was wrong.\n#### 18"),
    ("18", "The answer is 17. No, the answer is 18."),
    ("18", "#### 17\nThe answer is 18."),
    ("18", "The answer is 17.\n#### 18"),
    ("18", "#### 18\nThe answer is correct."),
    # thousands, decimals, signs
    ("1234", "#### 1,234"),
    ("1234567", "#### 1,234,567"),
    ("1234", r"\boxed{1{,}234}"),
    ("1234", r"\boxed{1\,234}"),
    ("1234", "#### 1234.00"),
    ("1,234", "#### 1234"),
    ("80000", "#### $80,000.00"),
    ("1234.5", "#### 1,234.50"),
    ("0.5", "#### .5"),
    ("0.5", "#### 0.50"),
    ("2.75", "The answer is $2.75."),
    ("-5", "#### -5"),
    ("-5", "#### −5"),
    ("-5", "#### -$5"),
    ("-5", "#### $-5"),
    ("-5", "The answer is negative 5."),
    ("-5", "The answer is minus 5."),
    ("-5", r"\boxed{-5}"),
    ("-0.5", "#### -.5"),
    ("-3/4", r"\boxed{-\frac{3}{4}}"),
    ("0", "#### 0"),
    ("0", "#### -0"),
    ("5", "#### +5"),
    # fractions and percent
    ("3/4", "#### 3/4"),
    ("0.75", "#### 3/4"),
    ("3/4", "#### 0.75"),
    ("3/4", "#### ¾"),
    ("1.5", "#### 1 1/2"),
    ("1.5", "#### 1½"),
    ("1.5", r"\boxed{1\frac{1}{2}}"),
    ("1.5", r"\boxed{\frac{3}{2}}"),
    ("1.5", r"\boxed{\dfrac{3}{2}}"),
    ("0.75", r"\boxed{\frac34}"),
    ("1/3", "#### 1/3"),
    ("1/3", "#### 2/6"),
    ("8", "#### 16/2"),
    ("2/3", r"The answer is $\frac{2}{3}$."),
    ("25", "The answer is 25 percent."),
    ("25%", "#### 25"),
    # scientific notation and multipliers
    ("1500", "#### 1.5e3"),
    ("1500", "#### 1.5E+3"),
    ("0.0015", "#### 1.5e-3"),
    ("1500", r"\boxed{1.5 \times 10^3}"),
    ("1500", r"\boxed{1.5 \times 10^{3}}"),
    ("1500", "#### 1.5 x 10^3"),
    ("2000000", "#### 2 million"),
    ("2500000", "The answer is $2.5 million."),
    ("5000", "#### 5k"),
    ("3000", "#### 3 thousand"),
    ("200000", "#### 2 hundred thousand"),
    # units
    ("18", "#### 18 cm^2"),
    ("18", "#### 18 m²"),
    ("18", "#### 18 miles/hour"),
    ("18", "#### 18 miles per 2 hours"),
    ("18", "#### 18kg"),
    ("18", "#### 18°"),
    ("18", r"\boxed{18^\circ}"),
    ("18", "#### €18"),
    ("18", "#### £18"),
    ("18", "#### Rs. 18"),
    ("18", "#### 18 USD"),
    ("5", "#### 5 dozen"),
    ("18", "#### 18 more apples"),
    ("50", "#### 50 cents"),
    # no statement: the last number
    ("18", "She sells 9 eggs at $2, so she makes 9 * 2 = 18 dollars."),
    ("18", "18"),
    ("18", "It costs 3 + 15 = 18."),
    ("18", "- 18"),
    ("18", "First 5, then 13.\nSo 18 in all."),
    ("110", "So Ralph didn't hit 60 + 50 = 110 balls."),
    ("18", "So the total is **18** eggs."),
    ("18", "I think it's 18."),
    # words around the number
    ("18", "#### Total: 18"),
    ("18", "#### Total: 18\n\nHope this helps!"),
    ("18", "#### Janet makes $18 per day"),
    ("18", "The answer for day 2 is 18."),
    ("2", "The answer to 'How many of the 3 cars are red?' is 2."),
    ("18", "The answer is 18 apples, not 17."),
    ("18", "The answer is 18 and not 17."),
    ("18", "Answer - 18"),
    ("18", "Final answer – $18"),
    ("18", "Answer — 18"),
    ("18", "#### eighteen (18)"),
    ("18", "The answer is 18 (eighteen)."),
    ("325", "The answer is three hundred and twenty-five (325) eggs."),
    ("18", "The answer is approx. 18. I used 5 steps."),
    ("18", "The answer is Rs. 18."),
    ("18", "The answer is Rs 18/-."),
    ("18", "The answer is 18 (x = 18)."),
    ("18", "The answer is 18 (9 * 2)."),
    ("18", "The answer is 18 for two people."),
    ("18", "The answer is 18 eggs for the two of them."),
    ("18", "The answer is $18 after 3 weeks."),
    ("18", "The answer is 18 five-dollar bills."),
    ("18", "The answer is 18 half-gallons."),
    ("18", "The answer is 18 more than Bob has."),
    ("18", "The answer is the total:\n18"),
    ("18", "The answer is ~18."),
    ("18", "The answer is 18 🎉"),
    ("18", "The final answer is 18<|im_end|>"),
    ("18", "A$18"),
    ("18", "#### R$ 18"),
    ("18", "#### CAD 18"),
    ("18", "#### INR18"),
    ("18", "#### ₩18"),
    ("-0.5", r"\boxed{\frac{-1}{2}}"),
    ("0.5", r"\boxed{\cfrac{1}{2}}"),
    # other digits and blanks
    ("1000", "#### 1_000"),
    ("1234", "#### 1'234"),
    ("1234", "#### 1\u2009234"),
    ("-18", "#### -\u200b18"),
    ("-18", "#### ⁻18"),
    ("18", "The answer is 18\u200b."),
    ("18", "#### 18"),
    ("1234", "#### 1\u00a0234".replace("\u00a0", ",")),
]

WRONG = [
    # another value
    ("18", "#### 17"),
    ("18", "#### 180"),
    ("18", "#### 1.8"),
    ("18", "#### -18"),
    ("-18", "#### 18"),
    ("18", "#### 18.01"),
    ("18", "#### 18 million"),
    ("18", "#### 18k"),
    ("18", "#### 18e1"),
    ("18", "#### 18/2"),
    ("0.18", "#### 18%"),
    ("18", "#### 0.18"),
    ("1234", "#### 1.234"),
    ("1/3", "#### 0.333333"),
    ("0.333", "#### 1/3"),
    ("2", "The answer is 2 million."),
    ("100000000000000000001", "#### 100000000000000000000"),
    # taken back
    ("17", r"\boxed{17} no wait \boxed{18}"),
    ("17", "#### 17\n#### 18"),
    ("17", "The answer is 17. The answer is 18."),
    ("18", "#### 18\n#### unknown"),
    ("18", r"#### 18" + "\n" + r"\boxed{}"),
    ("18", r"\boxed{18} and so \boxed{18"),
    # two answers at once
    ("18", "#### 17 or 18"),
    ("18", "#### 18 or 17"),
    ("17", "#### 17 or 18"),
    ("18", "#### 17, 18"),
    ("18", "#### 17 18"),
    ("18", "#### 17; 18"),
    ("18", "#### 17 and 18"),
    ("18", "#### 17/18/19"),
    ("18", "#### 17-18"),
    ("17", "#### 17-18"),
    ("18", "#### 17–18"),
    ("18", "The answer is 17 or 18."),
    ("17", "The answer is 17 or 18."),
    ("18", "The answer is either 17 or 18."),
    ("18", "The answer is between 17 and 18."),
    ("18", "The answer is 17 dollars, or maybe 18 dollars."),
    ("18", r"\boxed{17, 18}"),
    ("18", r"\boxed{17} or \boxed{18}"),
    ("17", r"\boxed{17} or \boxed{18}"),
    ("18", r"\boxed{18}, \boxed{19}"),
    ("18", r"\boxed{18} and \boxed{19}"),
    ("18", "x = 18, y = 20\nThe answer is x = 18, y = 20."),
    ("20", "The answer is x = 18, y = 20."),
    ("18", "#### 17 = 18"),
    ("18", "#### 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18"),
    ("18", "It is 17 or 18."),
    # denied or bounded
    ("18", "The answer is not 18."),
    ("18", "The answer isn't 18."),
    ("18", "The answer is less than 18."),
    ("18", "The answer is at least 18."),
    ("18", "The answer is more than 18."),
    ("18", "#### <18"),
    ("18", "#### 18 is wrong"),
    ("18", "#### not 18"),
    ("18", "#### ≥ 18"),
    ("18", "It is not 18."),
    ("18", "It isn't 18."),
    ("18", "The answer cannot be 18."),
    ("18", "The answer isnt 18."),
    ("18", "The answer isn‘t 18."),
    ("18", "The answer isn´t 18."),
    ("18", "The answer is anything but 18."),
    ("18", "The answer is far from 18."),
    ("18", "I don't believe the total is 18."),
    ("18", "I do not think that the total is 18."),
    ("18", "It cannot be 18."),
    ("18", "The answer is 18 or more."),
    ("18", "The answer is 18 at least."),
    ("18", "The answer is a minimum of 18."),
    ("18", "The answer should be less than: 18"),
    ("18", "#### 18+"),
    # a second number, in figures or in words
    ("18", "The answer is 18 if it rains, 20 otherwise."),
    ("18", "The answer is 18 for adults and 20 for children."),
    ("18", "The answer is 18, so the final total is 19."),
    ("18", "The answer is 18 when rounded down, 19 when rounded up."),
    ("18", "The answer is 18 (no, 17)."),
    ("17", "The answer is 17 (actually 18)."),
    ("18", "#### 18 (17 if rounded down)"),
    ("18", "The answer is 18 (9 x 2 = 17)."),
    ("18", "The answer is 18, not 18."),
    ("18", "The answer is 18 or nineteen."),
    ("18", "The answer is 18 and nineteen."),
    ("18", "The answer is minus eighteen or 18."),
    ("18", "The answer is 18 out of twenty."),
    ("18", "The answer is 18 less than twenty."),
    ("18", "It is 18 or nineteen."),
    ("18", "The answer is 18 eggs = 17 eggs"),
    ("18", "The answer is 18 hours 30 minutes."),
    # nothing that precedes the last statement
    ("20", "So 20 eggs in total.\nThe answer is eighteen."),
    ("20", "She has 20 eggs. The answer is"),
    ("20", "She has 20 eggs. The answer is unknown."),
    ("20", "The answer is eighteen. There were 20 eggs."),
    ("20", "#### eighteen\nThere were 20 eggs."),
    ("18", "She sells 18 eggs for $2 each.\nHow much does she make?"),
    ("18", 'She has 18 eggs. How many? End with "The answer is" and the final number.'),
    # left to compute
    ("10", "#### 10⁶"),
    ("2", "#### 2¹⁰"),
    ("27", "#### ∛27"),
    ("210", "#### 2**10"),
    ("18", "#### 1**8"),
    ("18", "#### 1~8"),
    ("-18", "#### |-18|"),
    ("18", "#### 18 + x"),
    ("18", "#### x + 18"),
    ("18", "#### 18 - x"),
    ("18", "#### 18a"),
    ("18", "#### 18-"),
    ("18", "The answer is half of 18."),
    ("18", "The answer is twice 18."),
    ("18", "The answer is a third of 18."),
    ("18", "The answer is the square root of 18."),
    ("18", "The answer is 18 squared."),
    ("18", "The answer is 18 and a half."),
    ("18", "The answer is 18 lakh."),
    ("18", "The answer is 18 crore."),
    ("18", "The answer is 18 mln."),
    ("18", "The answer is 18 quadrillion."),
    ("18", "The answer is 18 thousands."),
    # what touches the digits changes them
    ("1", "#### 1_000"),
    ("18", "#### 18_000"),
    ("8", "#### 𝟏8"),
    ("8", "#### ١8"),
    ("1", "#### 1٨"),
    ("1", "#### 1O0"),
    ("1", "#### 1OO"),
    ("1", "#### 1,OOO"),
    ("8", "#### l8"),
    ("18", "#### -\u200b18"),
    ("18", "#### ⁻18"),
    ("18", "#### ➖18"),
    ("18", "#### —18"),
    ("18", "#### 18E"),
    ("18", "#### 18∞"),
    ("18", "#### inf 18"),
    ("18", r"The answer is 1\,8."),
    ("1024", "#### 2^10"),
    ("2", "#### 2^10"),
    ("10", "#### 2^10"),
    ("18", "#### 9 + 9"),
    ("9", "#### 9 + 9"),
    ("18", "#### 9*2"),
    ("2", "#### 20 - 2"),
    ("18", "#### 20 - 2"),
    ("18", "#### 18 - 18"),
    ("18", r"\boxed{\sqrt{324}}"),
    ("324", r"\boxed{\sqrt{324}}"),
    ("3", r"\boxed{3\pi}"),
    ("3", "#### 3π"),
    ("3", "#### 3 pi"),
    ("3", "#### 3x"),
    ("3", r"\boxed{3x}"),
    ("2", r"\boxed{2\sqrt{3}}"),
    ("3", r"\boxed{2\sqrt{3}}"),
    ("18", r"\boxed{\sqrt[3]{18}}"),
    ("5", "#### 5!"),
    ("120", r"\boxed{5!}"),
    ("10", r"\boxed{10^{10}}"),
    ("10", "#### 10²"),
    ("102", "#### 10²"),
    ("18", "#### √18"),
    ("2", "#### 2x3"),
    # not a number
    ("18", ""),
    ("18", "   \n"),
    ("18", "eighteen"),
    ("18", "#### eighteen"),
    ("18", "I don't know."),
    ("18", "#### NaN"),
    ("18", "#### inf"),
    ("18", "#### 18:30"),
    ("18", "#### 1,8"),
    ("1234", "#### 12,34"),
    ("12", "#### 12,34"),
    ("18", "#### 18.18.18"),
    ("18", "#### 0x18"),
    ("0", "#### 0x18"),
    ("0", "#### 1/0"),
    ("1", "#### 1/0"),
    ("1", "#### 1e999999999"),
    ("18", "#### x18"),
    ("18", "#### CO18"),
    ("2", "#### H2O"),
    ("18", r"\boxed{"),
    ("18", r"\boxed{}"),
    ("18", "#### 18" + "0" * 5000),
    ("1", "#### " + "1" * 100_000),
    ("5", "16 eggs\n#### twelve"),
]


def graded(text: str, reference: str) -> bool:
    return GRADER.grade([text], [Question("q", "", reference)])[0].correct


@pytest.mark.parametrize(("reference", "text"), RIGHT)
def test_right_answers_pass(reference, text):
    assert graded(text, reference)


@pytest.mark.parametrize(("reference", "text"), WRONG)
def test_wrong_answers_fail(reference, text):
    assert not graded(text, reference)


def test_no_text_is_right_for_two_different_references():
    references = {canonical(value_of(r)) for r, _ in RIGHT + WRONG}
    for _, text in RIGHT + WRONG:
        assert sum(graded(text, reference) for reference in references) <= 1, text


def test_the_tables_are_large_enough():
    assert len(RIGHT) >= 100 and len(WRONG) >= 100


@given(st.fractions(max_denominator=10**6))
def test_canonical_is_read_back(value):
    assert value_of(canonical(value)) == value
    assert graded(f"#### {canonical(value)}", canonical(value))


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_two_numbers_agree_only_when_equal(a, b):
    assert graded(f"#### {a:,}", str(b)) == (a == b)
    assert graded(rf"\boxed{{{a}}}", str(b)) == (a == b)


@given(st.text(max_size=300))
def test_any_text_is_graded_and_extraction_is_stable(text):
    parsed = GRADER.extract(text)
    assert parsed is None or Fraction(parsed) == value_of(parsed)


@pytest.mark.parametrize(
    "text",
    [
        "answer " * 20_000,
        "\\boxed{" * 20_000,
        "#### " * 20_000,
        "1," * 50_000,
        "1 1/1 " * 20_000,
        "=" * 100_000,
        "(" * 100_000,
        "<<" * 50_000,
        "-" * 100_000,
        "\\frac{1}{" * 10_000,
        "The answer is " + "9 " * 50_000,
        "#### " + "1 (" * 30_000,
        "#### 1 so" + " so" * 30_000,
    ],
    ids=lambda text: text[:12],
)
@pytest.mark.timeout(20)
def test_long_hostile_text_takes_bounded_time(text):
    GRADER.extract(text)
