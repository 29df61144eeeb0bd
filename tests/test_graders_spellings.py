"""Answers as models write them: right ones are read, wrong ones that look right earn nothing."""

import pytest

from malt_jax.tasks.base import Question
from malt_jax.tasks.graders import benchmark_grader
from malt_jax.tasks.graders.choice import ChoiceGrader
from malt_jax.tasks.graders.exact import ExactGrader
from malt_jax.tasks.graders.latex import LatexGrader
from malt_jax.tasks.graders.number import NumberGrader
from malt_jax.tasks.graders.snippets import program

NUMBERS = [  # (text, the number that is read)
    # Bold type around a number, or around a sentence with it
    ("The answer is **18** a day.", "18"),
    ("The answer is **18 dollars** a day.", "18"),
    ("Answer: **18** a day", "18"),
    ("Janet makes **$18** a day.", "18"),
    ("**18**", "18"),
    ("Total: **$18**", "18"),
    ("**Janet makes $18 a day.**", "18"),
    ("So she makes **$18.**", "18"),
    ("The answer is 2**18", None),
    ("The answer is 18**2", None),
    ("The answer is 9 ** 2", None),
    # Groups of thousands with a blank behind their comma
    ("تكسب ١،٨٠٠ دولار.", "1800"),
    ("تكسب 1،800 دولار.", "1800"),
    ("الإجابة هي ١،٨٠٠", "1800"),
    ("She earns 1, 800 dollars.", None),
    ("彼女は1、800ドル稼ぎます。", None),
    # Words that begin as one for a power of ten
    ("정답은 18조각입니다.", "18"),
    ("답은 18만큼입니다.", "18"),
    ("উত্তর হল ১৮ শতাংশ।", "18"),
    ("答案是18千卡。", "18"),
    ("答案是18百分点", "18"),
    ("సమాధానం 18 వందశాతం", "18"),
    ("답은 18만입니다.", "180000"),
    ("답은 1만 8천원입니다", "18000"),
    ("答えは1万8000円です", "18000"),
    ("答案是3亿5000万。", "350000000"),
    ("Elle gagne 2 mille 500 euros.", "2500"),
    ("Jibu ni 18 elfu", "18000"),
    ("Jibu ni elfu 18", "18000"),
    # The answer behind an earlier one
    ("The first solution says the answer is 20. However, 18 is the correct answer.", "18"),
    ("The answer is 18. So 27 is the final answer.", "27"),
    ("18 is the answer.", "18"),
    ("The answer is 20. 18 is not the correct answer.", "20"),
    # Corrections
    ("The answer is 20. Actually, I made a mistake. She makes 18.", None),
    ("The answer is 20. Wrong!", None),
    ("The answer is 18. Incorrect! 27.", None),
    ("The answer is 18. Maybe 27.", None),
    ("The answer is 18.\n\n(Actually, it's 27.)", None),
    ("The answer is 18. However, it should be 27.", None),
    (r"\boxed{20}" "\n\nOn checking, I see that I made an error: the total is 18.", None),
    ("The answer is 18. It should be enough.", "18"),
    ("Die Antwort ist 18. Das ist falsch.", None),
    ("Die Antwort ist 18. Das stimmt nicht.", None),
    ("La réponse est 18. C'est faux.", None),
    ("La réponse est 18. Désolé, 19.", None),
    ("La respuesta es 18. Eso es incorrecto.", None),
    ("La respuesta es 18. Lo siento, es 19.", None),
    ("Ответ: 18. Это неверно.", None),
    ("Ответ: 18. Извините, 19.", None),
    ("정답은 18입니다. 아닙니다. 19입니다.", None),
    ("答えは18です。いや、19です。", None),
    ("答えは18です。すみません、19です。", None),
    ("答案是18。抱歉，应该是19。", None),
    ("答案是18。错误，是19。", None),
    ("الإجابة هي 18. عذرًا، 19.", None),
    # A wrong answer that is called wrong
    ("間違った答えは18です。", None),
    ("不正解は18です。", None),
    ("不正确的答案是18。", None),
    ("잘못된 답은 18입니다.", None),
    ("오답은 18입니다.", None),
    ("తప్పు సమాధానం 18", None),
    ("الإجابة الخاطئة هي 18", None),
    ("الجواب الخطأ هو 18", None),
    ("La mauvaise réponse est 18.", None),
    ("La respuesta errónea es 18", None),
    ("Ошибочный ответ: 18", None),
    ("正解は18です。", "18"),
    ("正确的答案是18。", "18"),
    # Without a statement, in languages with a decimal comma
    ("Ella gana 18 mil dólares.", "18000"),
    ("Sie verdient 1.800 Dollar.", None),
    ("Elle gagne 1.800 $", None),
    ("Она зарабатывает 1.800 долларов.", None),
    ("Sie verdient am Tag 18,5 Dollar.", "18.5"),
    ("Elle gagne 1 800,50 $.", "1800.5"),
    ("Die Antwort ist 1'800.", "1800"),
    ("She makes 1.8 dollars.", "1.8"),
    # A right answer beside the one that it replaces
    ("The correct answer is actually 18.", "18"),
    ("The answer is 18 instead of 20.", "18"),
    ("The answer should be 18, rather than 20.", "18"),
    ("The answer should be 18 instead.", "18"),
    ("The answer is 18 (not 20).", "18"),
    (r"The answer is \boxed{18}, not \boxed{20}.", "18"),
    (r"\boxed{18}, not \boxed{20}", "18"),
    (r"\boxed{18} or \boxed{20}", None),
    # Two signs
    ("The answer is -(-18)", "18"),
    ("The answer is -18", "-18"),
    (r"$- \boxed{12}$", "-12"),
    (r"$x = - \boxed{12}$", "-12"),
    (r"- \boxed{12}", "12"),
    # Fractions, places and roundings
    ("The answer is 5 and a half hours.", "5.5"),
    ("The answer is 5-1/2 inches.", "5.5"),
    ("The answer is five and a half (5.5) hours.", "5.5"),
    (r"\boxed{\frac{3}4}", "0.75"),
    (r"\boxed{\frac3{4}}", "0.75"),
    (r"\boxed{{3 \over 4}}", "0.75"),
    (r"\boxed{\frac{3}{-4}}", "-0.75"),
    ("The answer is 1/8th.", "0.125"),
    ("The answer is the 3rd.", None),
    (r"\boxed{3\text{rd}}", None),
    ("The answer is 18.25 (rounded to 2 decimal places).", "18.25"),
    ("The answer is 18 (or 17, see step 4).", None),
    ("The answer is 17.6 ≈ 18.", "18"),
    ("The answer is 17.64 ≈ 17.6 eggs.", "17.6"),
    ("The answer is 18 ≈ 17.", None),
    ("The answer is 15 ≈ 18.", None),
    (r"\boxed{\text{18 }}", "18"),
    ("The answer is 18 zł", "18"),
    ("> 18", "18"),
    ("The answer is > 18", None),
    # A further number, and a check of another answer
    ("So she makes 9 × 2 = 18 dollars a day for the 9 eggs.", None),
    ("#### 17\n\nIf the answer is 18, then 18 / 9 = 2.", None),
    # A copy of what was asked
    ('The answer is 18.\nEnd with "The answer is" and the final number.', "18"),
    ('End with "The answer is" and the final number.', None),
]


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_a_number_as_models_write_it(text, number):
    assert NumberGrader().extract(text) == number


CHOICES = {"A": "ignore", "B": "enforce", "C": "authoritarian", "D": "yell at", "E": "avoid"}
CHOSEN = [
    ("The first solution says the answer is (B). However, (A) is the correct answer.", "A"),
    ("The answer is (B). (A) is the correct answer.", "A"),
    ("(A) is wrong. (B) is the correct answer.", "B"),
    ("The answer is (B). However, (A) is correct.", None),
    (r"\boxed{\text{Option B}}", "B"),
    (r"\boxed{\text{Answer: B}}", "B"),
    (r"\boxed{\text{Choice (B)}}", "B"),
    ("The answer is still (B).", "B"),
    ("The answer is actually (B).", "B"),
    ("The answer is only (B).", "B"),
    ("The answer is, therefore, (B).", "B"),
    ("The answer is the letter B.", "B"),
    ("The answer is the option B.", "B"),
    ("The answer is (B).\nEnd with \"The answer is\" and the letter of one choice in parentheses.",
     "B"),
    ("The answer is B. However, C is correct.", None),
    ("The answer is B. However, A is correct.", None),
    ("The answer is (B). However, (C) is better.", None),
    ("The answer is (B). (C) works too.", None),
    ("The answer is B. Alternatively, C.", None),
    ("The answer is (B). It's (C).", None),
    ("The answer is B. I choose C.", None),
    ("The answer is B. So (C) it is.", None),
    ("The answer is (B). (A) is weak.", "B"),
    ("The answer is B. (C) is not correct.", "B"),
    ("The answer is (B). It's (B).", "B"),
    ("The answer is (B). So (B) it is.", "B"),
    ("The answer is (B). (A) is possible, but less likely.", "B"),
    ("The answer is B. I chose B because C is harsh.", "B"),
    ("The answer is B. Option C is wrong.", "B"),
    ("The answer is B. It's actually C.", None),
    ("The answer is B. I meant C.", None),
    ("The answer is B ❌", None),
    (r"\boxed{B} (wrong)", None),
    ("The answer is A enforce.", None),
    ("The answer is **A** enforce.", None),
    ("Answer: A enforce", None),
    ("The answer is A ignore.", "A"),
    ("The answer is B enforce.", "B"),
    ("The answer is B ✅", "B"),
    ("The answer is (B); (A) is wrong.", "B"),
    ("The answer is (B); (A) is right.", None),
    ("I would go with B.", "B"),
    ("I'll go with B.", "B"),
    ("I'd choose B.", "B"),
    ("I wouldn't go with B.", None),
    ("The answer is (B).\n\nThe other answers are wrong.", "B"),
    ("The answer is (B). The answer is based on the meaning of the word.", "B"),
    ("The answer is not (B).", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "label"), CHOSEN)
def test_a_choice_as_models_write_it(text, label):
    question = Question("q", "Which?", "B", {"choices": CHOICES})
    assert ChoiceGrader().extract(text, question) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The answer is still no.", "no"),
        ("The answer is no. Actually, yes.", None),
        ("The answer is yes. But it's no.", None),
        ("The answer is yes. It's no secret.", "yes"),
        ("The answer is yes. But it's no problem.", "yes"),
    ],
)
def test_yes_or_no_as_models_write_it(text, label):
    assert benchmark_grader("yes_no")[0].extract(text) == label


FORMULAS = [  # (reference, question, text, right)
    (r"\text{Evelyn}", "Who is fastest, Angela, Evelyn or Carla?", r"\boxed{Evelyn}", True),
    (r"\text{Evelyn}", "Who is fastest, Angela, Evelyn or Carla?", r"\boxed{\text{Carla}}", False),
    (r"\text{Evelyn}", "Who is fastest, Angela or Evelyn?", "The answer is Evelyn.", True),
    (r"\text{even}", "Is the function even, odd or neither?", r"\boxed{even}", True),
    (r"\text{even}", "Is the function even, odd or neither?", "**Answer:** even", True),
    (r"\text{ellipse}", "Is it a line, an ellipse or a circle?", r"\boxed{\text{ellipse}}", True),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{513^2 - 487^2}", False),
    ("-3", "?", r"\boxed{\text{-3}}", True),
    ("-3", "?", r"\boxed{\mathbf{-3}}", True),
    ("-3", "?", r"\boxed{\boldsymbol{-3}}", True),
    ("1234", "?", r"\boxed{\textbf{1,234}}", True),
    ("18", "?", r"\boxed{\text{\$18}}", True),
    ("18", "?", r"\boxed{\text{18\%}}", True),
    (r"\frac{1}{2}", "?", r"\boxed{\text{1/2}}", True),
    ("18", "?", r"\boxed{\bm{18}}", True),
    ("18", "?", r"\boxed{\mathit{18}}", True),
    ("18", "?", r"\boxed{18cm}", True),
    ("18", "?", r"\boxed{18x}", False),
    ("18", "?", r"\boxed{\text{-18}}", False),
    ("3, 5, 7", "?", r"\boxed{3, 5, and 7}", True),
    ("3, 5, 7", "?", r"\boxed{3, 5, or 7}", True),
    # the value of something else, unless it was asked for
    ("5", "If $x=2$ and $y=3$, what is $x + y$?", r"\boxed{x+y=5}", True),
    ("5", "What is x + y?", r"\boxed{x+y=5}", True),
    (r"\frac{1}{2}", r"Find $\cos x$.", r"\boxed{\cos x=\frac12}", True),
    ("5", "Solve $2x + 3 = 13$.", r"\boxed{2x=5}", False),
    ("12", "?", "The answer is $2n=12$.", False),
    ("5", "Find $x$.", r"\boxed{2 x=5}", False),
    ("(x+1)(x-1)", "?", "Hence $x^2-1=(x+1)(x-1)$.", True),
    # what the question says, in another spelling
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{N = 513^2 - 487^2}", False),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{513^2-487^2=513^2-487^2}", False),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{-487^2+513^2}", False),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{513^2-487^2+0}", False),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{+513^2-487^2}", False),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{1(513^2-487^2)}", False),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{513^2-487^2=26000}", True),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{N=26000}", True),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{26 \cdot 1000}", True),
    ("26000", "Compute $513^2 - 487^2$.", r"\boxed{(513-487)(513+487)=26000}", True),
    ("391", r"What is $17\times 23$?", r"\boxed{17\cdot 23}", False),
    ("391", r"What is $17\times 23$?", r"\boxed{(17)(23)}", False),
    ("391", r"What is $17\times 23$?", r"\boxed{17*23}", False),
    ("391", r"What is $17\times 23$?", r"\boxed{17\times 23=391}", True),
    ("6", "What is 15% of 40?", r"\boxed{0.15\cdot 40}", False),
    ("2k+2", "Simplify $(-k+4)+(-2+3k)$.", r"\boxed{-k+4-2+3k}", False),
    ("2k+2", "Simplify $(-k+4)+(-2+3k)$.", r"\boxed{2(k+1)}", True),
    (r"\frac{3}{4}", "What is 3 divided by 4?", r"\boxed{\frac{6}{8}}", True),
    ("10", "Choose 2 of 5.", r"\boxed{\binom{5}{2}}", True),
    # beside a formula
    ("12", "?", "So the area is less than $12$.", False),
    ("12", "?", "So the area is half of $12$.", False),
    ("12", "?", "The number of ways is 4 times $12$.", False),
    ("12", "?", "Hence $2n = 12$.", False),
    ("12", "?", "Hence $n^2 = 12$.", False),
    ("12", "?", "The answer is $12$ times pi.", False),
    (r"\sqrt{2}", "?", r"The length is 3$\sqrt{2}$.", False),
    (r"\sqrt{2}", "?", r"The length is -$\sqrt{2}$.", False),
    (r"\sqrt{2}", "?", r"The length is $\sqrt{2}$/2.", False),
    (r"\sqrt{2}", "?", r"The length is 5 + $\sqrt{2}$.", False),
    (r"\sqrt{2}", "?", r"The answer is all reals except $\sqrt{2}$.", False),
    (r"\sqrt{2}", "?", r"The answer is $\sqrt{2}$ minus one.", False),
    (r"\sqrt{2}", "?", r"The answer is the sum of one and $\sqrt{2}$.", False),
    (r"\sqrt{2}", "?", r"The answer is the conjugate of $\sqrt{2}$.", False),
    (r"\sqrt{2}", "?", r"The answer is x$\sqrt{2}$.", False),
    ("12", "?", "So the area is $12$.", True),
    ("12", "?", "So the area is $A = lw = 12$ square feet.", True),
    ("12", "?", r"So we get $3 \cdot 4 = 12$ for the 3 eggs.", True),
    ("12", "?", "There are $12$ ways.", True),
    ("12", "?", "\\boxed{12}\n\nThe answer is obtained in step $2$.", True),
    ("12", "?", "\\boxed{12}\n\nCheck: if the answer is $12$, then $12/4=3$.", True),
    (r"\sqrt{2}", "?", r"So the length is $\sqrt{2}$, about 1.41.", True),
    (r"\sqrt{2}", "?", r"Step 3 gives $\sqrt{2}$.", True),
    (r"\sqrt{2}", "?", r"For n = 3 we get $\sqrt{2}$.", True),
    (r"\sqrt{2}", "?", r"Thus $AB = \sqrt{2}$.", True),
    (r"\sqrt{2}", "?", r"The answer is the length $\sqrt{2}$ of the side.", True),
    ("-12", "?", r"$- \boxed{12}$", True),
    ("12", "?", r"$x = - \boxed{12}$", False),
    ("12", "?", r"\boxed{12} \quad \text{(wrong)}", False),
    ("12", "?", r"$3 \cdot \boxed{12}$", False),
    # spellings
    ("18", "?", r"\boxed{\text{18 }}", True),
    ("12", "?", r"\boxed{\text{12 }\text{cm}}", True),
    (r"\text{(C)}", "?", r"\boxed{\textbf{(C)}\ 5}", True),
    (r"\text{(C)}", "?", r"\boxed{\textbf{(B)}\ 5}", False),
    (r"\text{(C)}", "?", r"\boxed{\textbf{(C)}\text{ or }\textbf{(B)}}", False),
    (r"\text{(C)}", "?", r"\boxed{\text{Choice C}}", True),
    (r"\text{(C)}", "?", r"\boxed{\text{Choice B}}", False),
    ("18", "?", "\\boxed{18}\nEnd with the final answer in \\boxed{...}.", True),
]


def test_formulas_as_models_write_them():
    grader = LatexGrader()
    questions = [Question("q", asked, gold) for gold, asked, _, _ in FORMULAS]
    grades = grader.grade([text for *_, text, _ in FORMULAS], questions)
    wrong = [
        (case, grade)
        for case, grade in zip(FORMULAS, grades, strict=True)
        if bool(grade.correct) != case[-1]
    ]
    grader.close()
    assert wrong == []


def test_the_copied_instruction_of_a_word_is_no_answer():
    asks = 'End with a last line of the form "Answer: ..." that holds only the answer.'
    assert ExactGrader().extract(f"Answer: Paris\n{asks}") == "paris"
    assert ExactGrader().extract(asks) != '..." that holds only the answer'


FENCE = "```"
PROGRAMS = [
    (f"def f(a,b):\n    return a+b\n\nOutput:\n{FENCE}\n3\n{FENCE}", "return a+b", "3"),
    (f'def f(a,b):\n    return a+b\n\n{FENCE}json\n{{"x": 3}}\n{FENCE}', "return a+b", "json"),
    (
        f"{FENCE}python\nf = lambda a, b: a + b\n{FENCE}\nUse it:\n"
        f"{FENCE}python\nprint(f(1,2))\n{FENCE}",
        "lambda a, b",
        "use it",
    ),
    (
        "Answer:\nbase = 0\n\ndef f(a,b):\n    return a+b+base\n\nThat works.",
        "base = 0",
        "That works",
    ),
    (
        "Answer:\nCACHE: dict = {}\n\ndef f(a,b):\n    return CACHE\n\nThat works.",
        "CACHE: dict = {}",
        "That works",
    ),
]


@pytest.mark.parametrize(("text", "holds", "lacks"), PROGRAMS)
def test_a_program_as_models_write_it(text, holds, lacks):
    found = program(text, {"f"})
    assert found and holds in found and lacks not in found
