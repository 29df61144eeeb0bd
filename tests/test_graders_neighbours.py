# ruff: noqa: E501 (tables)
"""What stands beside an answer and changes it: signs at a box, corrections, bounds, scales, lists."""

from __future__ import annotations

import pytest

from malt_jax.tasks.base import Question
from malt_jax.tasks.graders.choice import ChoiceGrader
from malt_jax.tasks.graders.exact import ExactGrader, SetGrader
from malt_jax.tasks.graders.latex import LatexGrader
from malt_jax.tasks.graders.number import NumberGrader
from malt_jax.tasks.graders.snippets import program

NOT_18 = [  # texts in which 18 is a part of the answer, or is not it
    # at a box
    r"-\boxed{18}", r"$-\boxed{18}$", r"x = -\boxed{18}", r"\boxed{18} million",
    r"The answer is \boxed{18} million.", r"\boxed{18}\text{ million}", r"\boxed{18}{,}000",
    r"\boxed{18},000", r"\boxed{18}.5", r"\boxed{18}00", r"1\boxed{18}", r"\boxed{18}\frac12",
    r"\boxed{18} and a half", r"\boxed{18}^2", r"\boxed{18}x", r"2\boxed{18}", r"\sqrt{\boxed{18}}",
    r"\frac{1}{\boxed{18}}", r"\boxed{18}\times10^3", r"\boxed{18} \pm 2", r"\boxed{18}-20",
    r"\boxed{18}+", r"x \ne \boxed{18}", r"x > \boxed{18}",
    r"\boxed{18}?", r"\boxed{18} hours 30 minutes", r"\boxed{18} remainder 2", r"\boxed{18}k",
    r"\boxed{18} (incorrect)", r"\boxed{18} (wrong)", r"\boxed{18} \quad \text{(wrong)}", r"\boxed{18} ❌",
    "#### 18 ❌", "The answer is 18 ❌", r"$5 - \boxed{18}$", r"$3 + \boxed{18}$", r"$3 \cdot \boxed{18}$",
    r"$3 \times \boxed{18}$", r"$\log\boxed{18}$", r"\boxed{18}\,\pi", r"\boxed{18}\;\frac12", r"\boxed{18} i",
    r"$10^{\boxed{18}}$", r"\boxed{18} 000", r"\boxed{18}(3)", r"$5/\boxed{18}$", r"$x^{\boxed{18}}$",
    r"$\boxed{18}(x+1)$", r"$\boxed{18}e^x$", r"$\pi\boxed{18}$", r"$- \boxed{18}$", r"$x = - \boxed{18}$",
    # corrections
    "The answer is 18. **Wait**, it is 20.", "The answer is 18. **No**, 20.",
    "The answer is 18. Nope, 16", "The answer is 18. Never mind, 16.",
    "The answer is 18. My apologies, it is 16.", "The answer is 18. I'm sorry, it is 20.",
    "The answer is 18. Whoops, 16.", "The answer is 18. I mean 16.", "The answer is 18. Rather, 16.",
    "The answer is 18. Actually 16.", "The answer is 18. Not quite: 16.",
    "The answer is 18. Upon reflection, it is 20.", "The answer is 18. Edit: 16",
    "The answer is 18. Make that 16.", "The answer is 18. Mistake: 20",
    "The answer is 18. There was an error. 20", "The answer is 18. Let me recalculate… so 26",
    "The answer is 18. Let me redo this. 20", "The answer is 18. The above is incorrect.",
    "The answer is 18. The previous answer was incorrect. 20.",
    "The answer is 18. My calculation was wrong: 20",
    "The answer is 18. However, the correct total is 20.",
    "答案是18。对不起，应该是20。", "答案是18。其实是20。", "答えは18です。間違えました、20です。",
    "정답은 18입니다. 사실 20입니다.", "La respuesta es 18. Disculpa, es 20.",
    "La respuesta es 18. En realidad es 20.", "La réponse est 18. Erreur : 20.",
    "La réponse est 18. En fait, c'est 20.", "Die Antwort ist 18. Verzeihung, 20.",
    "Die Antwort ist 18. Das war falsch.", "Ответ: 18. Ошибка: 20.", "Ответ: 18. На самом деле 20.",
    "Jibu ni 18. Nimekosea, 20.", "উত্তর: ১৮। দুঃখিত, ২০।", "సమాధానం 18. క్షమించండి, 20.",
    "คำตอบคือ 18. จริงๆ แล้ว 20", "الإجابة هي 18. آسف، 20.", "उत्तर 18 है। दरअसल 20।",
    "The answer is 18. It's actually 20.", "The answer is 18. I meant 20.",
    "The answer is 18. The correct total is 20.", "The answer is 18. So it should be 20.",
    "The answer is 18. Let me try again: 20.", "The answer is 18. Let's redo this: 20.",
    "\\boxed{18}\n\nThe correct total is 20.",
    # unequal
    "The answer != 18", "The answer is != 18", "The answer is x != 18", "x != 18",
    "The answer =/= 18",
    # the value of something else
    r"\boxed{x+1=18}", r"\boxed{x^2=18}", r"\boxed{20-x=18}", r"\boxed{x/2=18}", r"\boxed{2x=18}",
    "The answer is x + 1 = 18.", "The answer is half of x = 18.", "#### x!=18", "Hence 2n = 18.",
    # scales
    "Jibu ni bilioni 18.", "উত্তর: ১৮ মিলিয়ন", "సమాధానం 18 మిలియన్.", "उत्तर 18 मिलियन है।",
    "الإجابة هي 18 تريليون.", "Ответ: 18 трлн.", "Die Antwort ist 18 Billionen.",
    "La respuesta es 18 billones.", "La réponse est 18 milliers.", "The answer is 18 fifths.",
    "The answer is 18 sevenths.", "The answer is 18 millionths.",
    "The answer is 18 and two-thirds.", "The answer is 18 and three-quarters.", "The answer is 18 billionths.",
    "The answer is 18 trln.", "The answer is 18 lac.", "The answer is 18 grand.", "The answer is 18 E2",
    "The answer is 18 to the fourth.", "The answer is 18 times pi.", "The answer is 18 minus one.",
    "The answer is the sum of one and 18.", "#### 18th", "She is the 18th.", "The answer is 18ths.",
    # bounds and parts
    "The answer exceeds 18.", "The answer is in excess of 18.", "The answer is as many as 18.",
    "The answer is 18 maximum.", "The answer is 18 upwards.", "The answer is 18 at the very least.",
    "The answer is just shy of 18.", "The answer is 18 less a third.",
    "The answer is a sixth of 18.", "The answer is quadruple 18.", "The answer is double that of 18.",
    "The answer is the reciprocal of 18.", "The answer is the absolute value of 18.",
    "The answer is 18 to the second power.", "Die Antwort ist größer als 18.",
    "Die Antwort ist 18 zum Quadrat.", "La respuesta es superior a 18.",
    "La respuesta es el cuadrado de 18.", "La réponse est à peine 18.", "Ответ: квадрат 18.",
    "الإجابة هي أكبر من 18.", "答えは18より大きいです。", "答案是18以内。", "उत्तर सवा 18 है।",
    "उत्तर पौने 18 है।", "คำตอบคือ 18 ขึ้นไป",
    "The answer is 36 - n = 18.", "So 3n = 18", "The answer is 18. This does not look right.",
    r"\( 5 - \boxed{18} \)", r"$$5 - \boxed{18}$$", "\\[\n5 - \\boxed{18}\n\\]", "The answer is 18 grand.",
    # the same without a statement
    "She has 10 to 18 eggs.", "She needs from 10 to 18 eggs.", "She earns 18 or more dollars.",
    "She earns 18 dollars or more.", "She needs a minimum of 18 eggs.", "She has the square of 18.",
    "She earns 3 times 18.", "She earns three times 18.", "She has 18 * 2 = 36 eggs and 18 friends.",
    # denials, guesses and conditions
    "Ответ: возможно, 18.", "La respuesta es quizás, 18.", "Die Antwort ist vielleicht, 18.",
    "La respuesta no puede ser 18.", "No creo que la respuesta sea 18.", "答案未必是18。",
    "Quizás la respuesta es 18.", "Возможно, ответ: 18.", "Si la respuesta es 18, ganó 2.", "もし答えが18なら、2個残る。",
    "假设答案是18。", "Maybe the answer is 18.", "Perhaps the answer is 18.",
    "The answer could be 18.", "The answer might be 18.", "The answer is 18 unless it rains.",
    "The answer would be 18 if she sold all.", "The answer is 18 (17 at best).",
]  # fmt: skip
IS_18 = [
    "The answer is 18\n\\boxed{18}", "Step 3\n\\boxed{18}", "Solve for x\n\\boxed{18}",
    "---\n\\boxed{18}", r"Final answer:-\boxed{18}", r"The final answer can be written as \boxed{18}.",
    "The answer is 18. This answer can be found by multiplying 9 by 2.", "> \\boxed{18}",
    r"<|assistant|>\boxed{18}", r"abc \le \boxed{18}", r"\boxed{18}^{\text{th}}", r"\boxed{18}_{10}",
    "\\boxed{18}\n\n- 9 eggs at $2", r"*\boxed{18}* (dollars)", r"\boxed{18} dollars, 2 dollars per egg.",
    "\\boxed{18}\n\nThousands of people", r"\boxed{18} \frac{\text{m}}{\text{s}^2}",
    "La respuesta es 18. De hecho, 9 × 2 = 18", "La réponse est 18. En fait, 9 × 2 = 18",
    "Ответ: 18. На самом деле это легко", "答えは18です。実は簡単です", "The answer is 18. I mean 18 dollars.",
    "Si dividimos 36 entre 2 la respuesta es 18.", "Baada ya kuuza nusu ya mayai jibu ni 18.",
    "全部売るなら答えは18です。", "There are 9 left over, so 18.", "As computed above, 18",
    "The answer is 18 if we include all the eggs", "The answer is 18 eggs, which could be sold.",
    "The answer is 18. Let me recheck: 9 * 2 = 18. Correct.", "The answer is 18. On reflection, this makes sense.",
    r"\boxed{18}^\circ", r"So $x = \boxed{18}$.", r"= \boxed{18}", r"**\boxed{18}**", r"- \boxed{18}",
    r"<answer>\boxed{18}</answer>", r"-> \boxed{18}", r"\boxed{18} eggs", r"\boxed{18}\text{ cm}^2",
    r"\boxed{18}!", r"\boxed{18} - that is all.", r"\boxed{18} = 9 * 2", r"Step 2: \boxed{18}",
    "\\boxed{18}\n\nThe answer is reasonable.", "\\boxed{18}\n\nThe answer is in dollars.",
    "\\boxed{18}\n\nThe answer is consistent with the problem.", "Die Antwort ist „18“.", "Ответ: «18».",
    "Answer ⇒ 18", "The answer is 18ºC.", r"\boxed{\bf 18}", r"\boxed{\large 18}", "NT$18", "Rp18",
    "答案是18（9×2）。", "The answer is 18. The eggs were wrong-sized.", "4!=24 is too many. The answer is 18.",
    "The answer can be found by 9 * 2. The answer is 18.", "答案是百分之18。",
    r"\boxed{18} (correct)", r"\boxed{18} ✅", "#### 18 ✓", r"\boxed{18} (not 20)", r"Answer - \boxed{18}",
    r"Part 2 - \boxed{18}", r"It costs $5. Answer - \boxed{18}", r"1. - \boxed{18}", r"\boxed{18}\,\text{cm}",
    r"\boxed{18} (that is, 18 eggs)", r"\[ 5 + 13 = \boxed{18} \]", r"\boxed{18}\text{ m}^2",
    "The answer is 18. It's actually 18 dollars.", "The answer is 18. So it should be 18.",
    "The answer is 18. The correct total is 18.", "The answer is 18. I meant 18 dollars.",
    "The answer is 18. This is the correct answer.", "The answer is 18. This solution is correct.",
    "The answer is 18. That sounds right.", "The answer is 20. Let me try again. The answer is 18.",
    "The answer is 18. Let's check this: 18 / 9 = 2.", "The answer is price * quantity = 18", "#### 9 x 2 = 18",
    "The answer is A = l * w = 18", "The answer is 10 m + 8 m = 18 m", "The answer is 18 times a day.",
    "The answer is 18 times as many.", "The answer is 18 grandmothers.", "The answer is 18 laces.",
    "The answer is 18 to the cashier.", "On the 3rd day she sells 18 eggs.", "The answer is 18 thimbles.",
    "She earns 18 dollars more than Bob.", "It took her 18 times.", "So 9 times 2 is 18.", "She adds 9 to get 18.",
    "She went 18 times to the shop.", "So she makes 9 × 2 = 18 dollars.", "She makes 9 * 2 = $18 per 2 days.",
    "She makes 9 * 2 = 18 dollars, so 18 in all.",
    "V = l * w * h = 18", "A = b * h / 2 = 18", r"$x = 5$ - \boxed{18}", r"· \boxed{18}",
    "\\boxed{18}\nx^2 is not needed.", "The answer is 18 grand pianos.",
    # a remark or a check behind the answer
    "#### 18\n\nThe answer is rounded to 2 decimal places.", "#### 18\n\nThe answer is rounded to the nearest 10.",
    "#### 18\n\nThe answer is based on 2 eggs a day.", "#### 18\n\nThe answer is obtained from step 2.",
    "#### 18\n\nThe answer is verified in step 2.", "#### 18\n\nThe answer is found in 2 steps.",
    "#### 18\n\nThe answer is a whole number.", "#### 18\n\nNote: the answer is in US dollars.",
    "Answer: 18\n\nAnswer explanation: There are 9 eggs left.", "Answer: 18\n\nAnswer check: 18 / 9 = 2",
    "#### 18\n\nVerification: if the answer is 18, then 18 / 9 = 2, as given.", "The answer is found to be 18.",
    "The answer is calculated as 18.", "The answer is given by 9 * 2 = 18.", "The answer is computed to be 18.",
    "The answer is 18 (see step 4).", "The answer is 18, as shown in step 3.",
    "The answer is 18, rounded to two decimal places.",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_18)
def test_what_changes_18_is_seen(text):
    assert NumberGrader().extract(text) != "18"


@pytest.mark.parametrize("text", IS_18)
def test_what_leaves_18_as_it_is_hides_nothing(text):
    assert NumberGrader().extract(text) == "18"


def test_the_sign_before_a_box_is_part_of_its_number():
    assert NumberGrader().extract(r"x = -\boxed{5}") == "-5"
    assert NumberGrader().extract(r"x - \boxed{5}") != "-5"


LIBRARY = {"A": "bank", "B": "library", "C": "department store", "D": "mall", "E": "new york"}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (r"\neq \boxed{B}", None),
        ("(B). **Wait**, (D).", None),
        ("The answer is B, which is bank.", None),
        ("The answer is option B, which is the bank.", None),
        ("The answer is B, not library.", None),
        ("The answer != B", None),
        ("The answer is B, which is library.", "B"),
        ("The most suitable option is (B) library.", "B"),
        ("My choice is B", "B"),
        ("Final choice: B", "B"),
        ("The answer is certainly (B).", "B"),
        ("The answer is B, not C or D.", "B"),
        ("The answer is B, whereas A is for money.", "B"),
        ("```\nB\n```", "B"),
        ("-> (B)", "B"),
        (r"\boxed{B} - a library", "B"),
        ("(B) because it is wrong to keep books in a bank", "B"),
        ("(B). The answer can be found in the text.", "B"),
        (r"\boxed{B} - (library)", "B"),
    ],
)
def test_a_choice_is_read_with_what_stands_beside_it(text, label):
    question = Question("q", "Where?", "B", {"choices": LIBRARY})
    assert ChoiceGrader().extract(text, question) == label


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Answer != Paris", "answer ≠ paris"),
        (r"\boxed{Paris}?", None),
        (r"The answer is \(\text{Paris}\).", "paris"),
        ("Answer: Paris<end_of_turn>", "paris"),
        ("Answer: «Paris»", "paris"),
        ("Answer: 10：30", "10:30"),
    ],
)
def test_words_are_read_with_what_stands_beside_them(text, words):
    assert ExactGrader().extract(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "Answer:\n- red\n\n- green\n- blue",
        "Answer:\nred\ngreen\nblue",
        "Answer:\na) red\nb) green\nc) blue",
        "### Answer\n- red\n- green\n- blue",
        "Answer: red, green, blue",
    ],
)
def test_a_list_below_its_announcement_is_read_to_its_end(text):
    assert SetGrader().extract(text) == SetGrader().extract("Answer: red, green, blue")


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        (r"\frac34", r"-\boxed{\frac34}", False),
        (r"\frac34", r"\boxed{\frac34}\pi", False),
        (r"\frac34", r"\boxed{\frac34}^2", False),
        ("(3,-2)", r"-\boxed{(3,-2)}", False),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(r,\theta)=\left(3,\frac{\pi}{2}\right)}", True),
        ("(3,-2)", r"\boxed{P(3,-2)}", True),
        ("5,3", r"\boxed{x=5\quad\text{or}\quad x=3}", True),
        ("1010_2", r"\boxed{(1010)_{2}}", True),
        ("12", r"\boxed{{{12}}}", True),
        (r"\frac34", r"\boxed{\mathbf{\frac34}}", True),
        ("12", r"\boxed{\color{red}{12}}", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\left(\begin{matrix} 1 \\ 2 \end{matrix}\right)}", True),
    ],
)  # fmt: skip
def test_mathematics_is_read_with_what_stands_beside_it(gold, text, right):
    grader = LatexGrader(workers=1)
    try:
        [grade] = grader.grade([text], [Question("q", "", gold)])
    finally:
        grader.close()
    assert grade.correct is right


def test_prose_after_a_block_that_is_never_closed_is_no_code():
    text = "```python\ndef add(a, b):\n    return a + b\n\nThis function adds two numbers."
    assert program(text, {"add"}) == "def add(a, b):\n    return a + b"
