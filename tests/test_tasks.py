"""Every task: its published columns are read, its prompts are whole, its splits do not overlap."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import pytest

from malt_jax.errors import UserError
from malt_jax.tasks import GENERATED, arithmetic, check_overlap, custom, get_task, task_names
from malt_jax.tasks.base import Grade, Question, Task
from malt_jax.tasks.rewards import Rewarded
from malt_jax.tree.prompts import fill, placeholders

COMMON = {"id": "c1", "answerKey": "B"}
MBPP = {
    "task_id": 2,
    "text": "Write a function to add.",
    "code": "def add(a, b): return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    "test_setup_code": "",
}
SUM = arithmetic.make_question(0, seed=0, split="eval")
ROWS = {  # task -> rows in its published columns, the text and the answer expected of the last
    "gsm8k": ([{"question": "How many?", "answer": "So 1,200.\n#### 1,200"}], "How many?", "1200"),
    "gsm_symbolic": (
        [
            {"id": 0, "instance": i, "question": f"How many {i}?", "answer": f"#### {i}"}
            for i in (3, 4)
        ],
        "How many 4?",
        "4",
    ),
    "svamp": (
        [
            {"id": "chal-1", "question": "How many?", "answer": "3"},
            {
                "ID": "chal-777",
                "Body": "There are 87 oranges and 290 bananas in Philip's collection.",
                "Question": "How many fruits are there?",
                "Equation": "( 87.0 + 290.0 )",
                "Answer": "377.0",
                "Type": "Addition",
                "question_concat": "There are 87 oranges and 290 bananas in Philip's collection. "
                "How many fruits are there?",
            },
        ],
        "There are 87 oranges and 290 bananas in Philip's collection. How many fruits are there?",
        "377",
    ),
    "math": (
        [
            {
                "problem": "Add.",
                "solution": r"So $\boxed{\frac{1}{2}}$.",
                "level": "Level 5",
                "type": "Algebra",
            }
        ],
        "Add.",
        r"\frac{1}{2}",
    ),
    "math500": (
        [
            {
                "problem": "Add.",
                "solution": r"So $\boxed{2}$.",
                "answer": r"\left( 3, 2 \right)",
                "level": 5,
                "subject": "Algebra",
                "unique_id": "test/algebra/1.json",
            }
        ],
        "Add.",
        r"\left( 3, 2 \right)",
    ),
    "csqa": (
        [
            COMMON
            | {
                "question": {
                    "stem": "Where?",
                    "choices": [{"label": "A", "text": "here"}, {"label": "B", "text": "there"}],
                }
            },
            COMMON
            | {
                "id": "c2",
                "question": "Where?",
                "choices": {"label": ["A", "B"], "text": ["here", "there"]},
            },
        ],
        "Where?\n(A) here\n(B) there",
        "B",
    ),
    "strategyqa": ([{"qid": "s1", "question": "Do birds?", "answer": True}], "Do birds?", "yes"),
    "logic": ([{"question": "Who?", "answer": "A knave", "family": "x"}], "Who?", "A knave"),
    "arithmetic": ([{"question": SUM[0], "answer": int(SUM[1])}], *SUM),
    "triples": ([{"question": "14:4827", "answer": "2+4+8"}], "14:4827", "2+4+8"),
    "parity": ([{"question": "abcaab", "answer": "odd"}], "abcaab", "odd"),
    "mbpp": (
        [MBPP],
        "Write a function to add.\nThe code must pass tests like this one:\n\n"
        "```python\nassert add(1, 2) == 3\n```",
        MBPP["code"],
    ),
    "humaneval": (
        [
            {
                "task_id": "HumanEval/0",
                "prompt": "def add(a, b):\n    '''Adds.'''\n",
                "canonical_solution": "    return a + b\n",
                "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
                "entry_point": "add",
            }
        ],
        "Complete this Python function.\n\n```python\ndef add(a, b):\n    '''Adds.'''\n```",
        "    return a + b\n",
    ),
}
RIGHT = {
    "gsm8k": "#### 1200",
    "gsm_symbolic": "#### 4",
    "svamp": "The answer is 377 fruits.",
    "math": r"\boxed{0.5}",
    "math500": r"\boxed{(3,2)}",
    "csqa": "The answer is (B)",
    "strategyqa": "The answer is yes.",
    "logic": "Answer: a knave",
    "mbpp": "```python\ndef add(a, b): return a + b\n```",
    "humaneval": "```python\ndef add(a, b):\n    return a + b\n```",
    "triples": "so =8+2+4",
    "parity": "1,1,1,0,1,1=odd",
}
WRONG = {
    "gsm8k": "#### 120",
    "gsm_symbolic": "#### 3",
    "svamp": "The answer is 37.7.",
    "math": r"\boxed{2}",
    "math500": r"\boxed{(2,3)}",
    "csqa": "The answer is (A)",
    "strategyqa": "The answer is no.",
    "logic": "Answer: a knight",
    "mbpp": "```python\ndef add(a, b): return 3\n```",
    "humaneval": "```python\ndef add(a, b):\n    return 0\n```",
    "triples": "=2+4+7",
    "parity": "odd=even",
}
BAD_ROWS = [
    ("math", {"problem": "Add.", "solution": "So 2."}, "no final answer"),
    ("math", {"problem": "Add.", "answer": r"\boxed{}"}, "no final answer"),
    ("math", {"problem": "Add.", "answer": "x" * 2000}, "no final answer"),
    ("math", {"answer": "2"}, "no column `problem` or `question`"),
    ("csqa", COMMON | {"question": "Where?"}, "no column `choices`"),
    ("csqa", COMMON | {"question": {"stem": "Where?"}}, "no column `choices`"),
    ("csqa", COMMON | {"question": "Where?", "choices": {"label": ["A"], "text": []}}, "choices"),
    ("csqa", COMMON | {"question": "Where?", "choices": [1, 2]}, "`choices` is not"),
    ("csqa", COMMON | {"question": "Where?", "choices": ["x"]}, "`choices` is not"),
    ("csqa", {"question": "Where?", "choices": ["x", "y"], "answerKey": "F"}, "one of A, B"),
    (
        "csqa",
        {"question": "Where?", "choices": ["x", "y"], "answerKey": ""},
        "`answerKey` is empty",
    ),
    ("strategyqa", {"question": "Do?", "answer": "perhaps"}, "not true or false"),
    ("strategyqa", {"question": "Do?", "answer": 1}, "not true or false"),
    ("arithmetic", {"question": "What is 2?", "answer": "4"}, "write it as"),
    ("arithmetic", {"question": "1+2", "answer": "three"}, "the digits sum to 3"),
    ("triples", {"question": "14:4,8,2", "answer": "2+4+8"}, "write it as"),
    ("triples", {"question": "14:48273", "answer": "2+4+8"}, "has 2 triples"),
    ("triples", {"question": "14:4827", "answer": "8+2+4"}, "the triple is 2+4+8"),
    ("parity", {"question": "abd", "answer": "odd"}, "write it as"),
    ("parity", {"question": "abcaab", "answer": "even"}, "the number of a's is odd"),
    ("mbpp", MBPP | {"test_list": []}, "`test_list` is not"),
    ("mbpp", MBPP | {"test_list": "assert f()"}, "`test_list` is not"),
    ("mbpp", MBPP | {"test_list": ["assert ("]}, "`test_list` is not Python"),
    ("mbpp", MBPP | {"test_list": ["assert 1 == 1"]}, "calls no function"),
    ("humaneval", {"prompt": "def f(", "entry_point": "f", "test": "pass"}, "not Python"),
    ("humaneval", {"prompt": "x", "entry_point": "f()", "test": "pass"}, "`entry_point`"),
]


def load_rows(tmp_path, task: Task, rows, split="eval"):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return task.load(split, str(path))


@pytest.mark.parametrize("name", ROWS)
def test_published_columns_are_read_and_graded(tmp_path, name):
    rows, text, answer = ROWS[name]
    task = get_task(name, allow_code=True)
    questions = load_rows(tmp_path, task, rows)
    last = questions[-1]
    assert (last.text, last.answer, len(questions)) == (text, answer, len(rows))
    assert "/" not in last.id
    json.dumps(dict(last.meta))  # goes into the tree records
    if name in RIGHT:
        grades = task.grader.grade([RIGHT[name], WRONG[name]], [last, last])
        assert [grade.correct for grade in grades] == [True, False]
        assert grades[0].parsed


def test_difficulty_and_subject_go_into_meta(tmp_path):
    for name in ("math", "math500"):
        question = load_rows(tmp_path, get_task(name), ROWS[name][0])[0]
        assert question.meta == {"level": "5", "subject": "Algebra"}
    solution = "First <<2*3=6>>6, then <<6+1=7>>7.\n#### 7"
    rows = [{"question": "How many?", "answer": solution}]
    assert load_rows(tmp_path, get_task("gsm8k"), rows)[0].meta == {"level": "2 steps"}
    rows = [{"question": "9+9+9+9+1+1+1+2", "answer": "41"}]
    assert load_rows(tmp_path, get_task("arithmetic"), rows)[0].meta == {"level": "sum 40 to 49"}


@pytest.mark.parametrize(("name", "row", "words"), BAD_ROWS)
def test_a_row_of_another_layout_is_refused_by_name(tmp_path, name, row, words):
    with pytest.raises(UserError, match="line 1") as error:
        load_rows(tmp_path, get_task(name, allow_code=True), [row])
    assert words in str(error.value)


@pytest.mark.parametrize("name", [n for n in task_names()])
def test_templates_are_whole(name):
    task = get_task(name, allow_code=True)
    order = ["question", "generator", "verifier"]
    for role, allowed in {"generator": 1, "verifier": 2, "refiner": 3}.items():
        template = task.templates[role]
        assert placeholders(template) == order[:allowed]
        filled = fill(
            template, {"question": "{verifier}", "generator": "{question}", "verifier": "v"}
        )
        assert filled.count("{verifier}") == 1  # texts with braces are inert
    assert set(placeholders(task.templates["retry"])) == {"question", "previous"}
    if name not in GENERATED:  # their small models have a format of their own
        assert set(placeholders(task.templates["debate"])) == {"question", "others"}
        for role in ("generator", "refiner", "judge", "retry", "debate"):
            assert task.answer_format in task.templates[role]
    assert task.name == name and task.description and task.splits == ("train", "eval")


def test_the_number_of_questions_and_their_draw(tmp_path):
    task = get_task("gsm8k")
    rows = [{"question": f"How many {i}?", "answer": f"#### {i}"} for i in range(50)]
    everything = load_rows(tmp_path, task, rows)
    path = str(tmp_path / "data.jsonl")
    assert task.load("eval", path, 10) == everything[:10]
    ten, twenty = (task.load("eval", path, n, 1) for n in (10, 20))
    assert ten != everything[:10] and task.load("eval", path, 10, 1) == ten
    assert set(q.id for q in ten) < set(q.id for q in twenty)
    for limit in (0, -1, 51):
        with pytest.raises(UserError, match="holds 50"):
            task.load("eval", path, limit)
    with pytest.raises(UserError, match="choose from train, eval"):
        task.load("test", path)


def test_boxes_of_published_solutions_are_read_or_left_out(tmp_path, caplog):
    rows = [
        {"problem": "p1", "solution": r"our answer is $\boxed 2$."},
        {"problem": "p2", "solution": r"so $x = \boxed9$."},
        {"problem": "p3", "solution": r"$\boxed{}$"},
        {"problem": "p4", "solution": r"so $\boxed{16}$."},
    ]
    task = get_task("math")
    assert [q.answer for q in load_rows(tmp_path, task, rows)] == ["2", "9", "16"]
    assert "1 rows left out: " in caplog.text and "line 3" in caplog.text
    for solution in (r"\boxed{}", r"So 2.", r"\boxed{2", r"\boxed"):
        with pytest.raises(UserError, match=r"line 1.*no final answer"):
            load_rows(tmp_path, task, [{"problem": "p", "solution": solution}])


def test_tests_may_use_modules_and_build_objects_of_the_solution(tmp_path):
    task = get_task("mbpp", allow_code=True)
    tree = "class Node:\n  def __init__(self, d): self.d, self.left = d, None\n"
    size = "def f(t): return sys.getsizeof(t)"
    rows = [
        MBPP | {
            "task_id": 367,
            "code": tree + "def is_leaf(n): return n.left is None",
            "test_list": ["assert is_leaf(root) == False"],
            "test_setup_code": "root = Node(1) \r\nroot.left = Node(2)",
        },
        MBPP | {
            "task_id": 596,
            "code": "import sys \r\n" + size,
            "test_list": ["assert f((1, 2)) == sys.getsizeof((1, 2))"],
        },
    ]  # fmt: skip
    questions = load_rows(tmp_path, task, rows)
    assert "\nroot = Node(1)\nroot.left = Node(2)\n\nassert is_leaf" in questions[0].text
    assert [list(q.meta["code"]["names"]) for q in questions] == [["is_leaf", "root"], ["f"]]
    right = [f"```python\n{row['code']}\n```" for row in rows]
    wrong = [f"```python\n{tree}def is_leaf(n): return True\n```", f"```python\n{size}\n```"]
    assert all(grade.correct for grade in task.grader.grade(right, questions))
    assert not any(grade.correct for grade in task.grader.grade(wrong, questions))


MBPP_HARD = [  # rows of the published test split that are unlike the others
    {
        "task_id": 126,
        "text": "Write a python function to find the sum of common divisors of two given numbers.",
        "code": "def sum(a,b): \r\n    sum = 0\r\n    for i in range (1,min(a,b)): \r\n"
        "        if (a % i == 0 and b % i == 0): \r\n            sum += i \r\n    return sum",
        "test_list": [
            "assert sum(10,15) == 6",
            "assert sum(100,150) == 93",
            "assert sum(4,6) == 3",
        ],
    },
    {
        "task_id": 533,
        "text": "Write a function to remove particular data type elements from the given tuple.",
        "code": "def remove_datatype(test_tuple, data_type):\r\n  res = []\r\n  "
        "for ele in test_tuple:\r\n    if isinstance(ele, data_type):\r\n      continue\r\n"
        "    res.append(ele)\r\n"
        "  return (res)",
        "test_list": [
            "assert remove_datatype((4, 5, 4, 7.7, 1.2), int) == [7.7, 1.2]",
            'assert remove_datatype((7, 8, 9, "SR"), str) == [7, 8, 9]',
            "assert remove_datatype((7, 1.1, 2, 2.2), float) == [7, 2]",
        ],
    },
    {
        "task_id": 1,
        "text": "Write a function that is called like a type, over Python's own.",
        "code": "def list(n):\n    return [*range(n)]\n"
        "def max(a, b):\n    return a if a > b else b",
        "test_list": ["assert list(3) == [0, 1, 2]", "assert max(list(2), [0]) == [0, 1]"],
    },
]
MBPP_UNUSABLE = [
    MBPP | {"task_id": 901, "test_list": ["assert 1 == 1"]},
    MBPP | {"task_id": 902, "test_list": ["assert add(lambda x: x, 2) == 3"]},
    MBPP | {"task_id": 903, "test_list": ["assert add("]},
    MBPP | {"task_id": 904, "code": "def add(a, b) return a + b"},
]


def test_every_row_of_mbpp_passes_its_own_tests_or_is_left_out_by_name(tmp_path, caplog):
    task = get_task("mbpp", allow_code=True)
    questions = load_rows(tmp_path, task, [*MBPP_HARD, *MBPP_UNUSABLE, MBPP])
    assert [question.id for question in questions] == ["126", "533", "1", "2"]
    assert "4 rows left out: " in caplog.text
    assert all(f"line {line}" in caplog.text for line in (4, 5, 6, 7))
    texts = [f"```python\n{question.answer}\n```" for question in questions]
    assert all(grade.correct for grade in task.grader.grade(texts, questions))
    wrong = [text.replace("return", "return None and") for text in texts]
    assert not any(grade.correct for grade in task.grader.grade(wrong, questions))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("math", {"problem": "p", "solution": "So 2."}),
        ("csqa", {"id": "x", "question": "Where?", "choices": ["a", "b"], "answerKey": ""}),
        ("csqa", {"id": "x", "question": "Where?", "choices": ["a", "b"], "answerKey": "F"}),
        ("svamp", {"id": "x", "question": "How many?", "answer": "many"}),
    ],
)
def test_one_unusable_row_does_not_stop_a_benchmark(tmp_path, caplog, name, bad):
    good = ROWS[name][0]
    assert len(load_rows(tmp_path, get_task(name), [bad, *good])) == len(good)
    assert "1 rows left out: " in caplog.text and "line 1: " in caplog.text
    with pytest.raises(UserError, match="line 1"):
        load_rows(tmp_path, get_task(name), [bad])


PUBLISHED = {  # rows as published, whose own answers are unusual
    "gsm8k": [
        "There are 1 200 of them.\n#### 1,200",
        "He needs 2.5 hours.\n#### 2.5",
        "She is down.\n#### -3",
        "It is a big one.\n#### 5,600,000,000",
    ],
    "math500": [
        r"Thus $x = \boxed{\frac{270}7\text{ degrees}}$. The answer is: \frac{270}7\text{ degrees}",
        r"$\boxed{4210_5}$",
        r"$\boxed{\left( 3, \frac{\pi}{2} \right)}$",
        r"$\boxed{11,\! 111,\! 111,\! 100}$",
        r"$\boxed{\text{(B), (C)}}$",
        r"$\boxed{x \in [-2,7]}$",
        r"$\boxed{\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}}$",
        r"$\boxed{-\frac{1}{3}}$ or so. $\boxed{6 - 5i}$",
        r"$\boxed{p - q}$",
        r"$\boxed{\$32,\!348}$",
        r"$\boxed{5.4 \text{ cents}}$",
        r"$\boxed{10\%}$",
        r"$\boxed{(-\infty, 0) \cup (2, \infty)}$",
        r"$\boxed{1 \pm \sqrt{19}}$",
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_solutions_pass(tmp_path, name):
    task = get_task(name)
    solutions = PUBLISHED[name]
    rows = [{"question": f"q{i}", "answer": text} for i, text in enumerate(solutions)]
    questions = load_rows(tmp_path, task, rows)
    grades = task.grader.grade(solutions, questions)
    assert [s for s, grade in zip(solutions, grades, strict=True) if not grade.correct] == []


ITALIAN = (
    "Le anatre di Gianna depongono sedici uova al giorno. Ne mangia tre a colazione ogni mattina e "
    "prepara dolci per i suoi amici con quattro. Vende il resto al mercato per due euro. Quanto "
)


def test_questions_in_a_language_that_is_not_read_are_reported(tmp_path, caplog):
    rows = [{"question": f"{ITALIAN} {i}?", "answer": "#### 18"} for i in range(3)]
    assert len(load_rows(tmp_path, get_task("gsm8k"), rows)) == 3
    assert "answers announced in the questions' language are not recognised" in caplog.text
    caplog.clear()
    chinese = "珍妮特的鸭子每天下十六颗蛋。她每天早上早餐时吃三颗，每天用四颗为自己的朋友做松饼。"
    english = "How many of the eggs does she sell, and what does she earn with them each day?"
    for text in (chinese, english):
        rows = [{"question": f"{text} {i}?", "answer": "#### 18"} for i in range(9)]
        load_rows(tmp_path, get_task("gsm8k"), rows)
    assert "announcement" not in caplog.text


def test_a_grade_has_a_reward_between_0_and_1():
    assert (Grade("1", True).reward, Grade("1", False).reward, Grade(None, False).reward) == (
        1,
        0,
        0,
    )
    assert Grade("1", False, 0.25).reward == 0.25 and Grade("1", True) == Grade("1", True, 1.0)
    for reward in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            Grade("1", True, reward)


def test_overlap_is_refused_by_id():
    train = [Question("t1", "How  many\neggs?", "1"), Question("t2", "Why?", "2")]
    check_overlap(train, [Question("e1", "How few?", "1")])
    with pytest.raises(UserError, match=r"1 of 2 .*t1 = e1"):
        check_overlap(train, [Question("e1", "how many EGGS?", "1"), Question("e2", "x", "1")])


def test_generated_splits_do_not_overlap_and_repeat():
    for name in (*GENERATED, "logic"):
        if name == "logic":
            pytest.importorskip("reasoning_gym")
        task = get_task(name)
        train, evaluation = (task.load(split, limit=24, seed=1) for split in ("train", "eval"))
        check_overlap(train, evaluation)
        assert len({q.id for q in train}) == 24
        assert task.load("train", limit=24, seed=1) == train
        assert task.load("train", limit=24, seed=2) != train
    assert len({q.meta["subject"] for q in train}) >= 2
    texts = [f"So.\nAnswer: {q.answer}" for q in train]
    assert all(grade.correct for grade in task.grader.grade(texts, train))
    shifted = task.grader.grade(texts, [Question("", "", q.answer + "x") for q in train])
    assert not any(grade.correct for grade in shifted)


def test_a_missing_hub_is_a_user_error(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"openai/gsm8k .*no route to host.*task\.train_path"):
        get_task("gsm8k").load("train")


def test_hub_rows_are_parsed_as_local_ones(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(repo, config, split):
        asked.append((repo, config, split))
        return [{"problem": f"Add {config}.", "solution": r"\boxed{2}"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    questions = get_task("math").load("eval")
    assert len(asked) == len(questions) == 7
    assert asked[0] == ("EleutherAI/hendrycks_math", "algebra", "test")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gms8k", "Did you mean 'gsm8k'"),
        ("qqqq", "choose from arithmetic"),
        ("", "choose from"),
        ("nowhere:TASK", "can't be imported"),
        ("yaml:nothing", "can't be imported"),
        ("yaml:safe_load", "raised TypeError"),
        ("yaml:nodes", "must be a Task"),
        (":x", "can't be imported"),
    ],
)
def test_an_unknown_task_is_refused_with_a_hint(name, words):
    with pytest.raises(UserError) as error:
        get_task(name)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_code_tasks_need_permission(name):
    with pytest.raises(UserError, match="allow_code"):
        get_task(name)


@pytest.mark.parametrize(
    ("grader", "answer", "right", "wrong"),
    [
        ("number", "1,200", "#### 1200", "#### 12"),
        ("exact", "Paris", "Answer: paris", "Answer: Rome"),
        ("set", "red, blue", "Answer: blue and red", "Answer: blue"),
        ("latex", r"\frac{1}{2}", r"\boxed{0.5}", r"\boxed{5}"),
        ("choice", "B", "The answer is (B)", "The answer is (C)"),
    ],
)
def test_your_own_file_is_a_task(tmp_path, grader, answer, right, wrong):
    task = get_task("custom", grader=grader)
    row = {"question": "What?", "answer": answer, "source": "book"}
    if grader == "choice":
        row["choices"] = ["red", "blue", "green"]
    question = load_rows(tmp_path, task, [row])[0]
    assert question.id == "eval-1" and question.meta["source"] == "book"
    grades = task.grader.grade([right, wrong], [question] * 2)
    assert [grade.correct for grade in grades] == [True, False]


@pytest.mark.parametrize(
    ("grader", "answer"), [("number", "many"), ("choice", "Q1"), ("exact", "!.")]
)
def test_your_own_answers_must_be_gradable(tmp_path, grader, answer):
    with pytest.raises(UserError, match=r"line 1.*choose another task\.grader"):
        load_rows(
            tmp_path, get_task("custom", grader=grader), [{"question": "What?", "answer": answer}]
        )


@pytest.mark.parametrize(
    ("grader", "answer"),
    [
        ("exact", "one\ntwo"),
        ("set", "a, b\nc"),
        ("latex", "}{"),
        ("latex", "}"),
    ],
)
def test_your_own_answers_must_be_readable_as_they_are_asked_for(tmp_path, grader, answer):
    rows = [{"question": "What?", "answer": answer}]
    with pytest.raises(UserError, match=r"line 1.*can't be read back.*choose another task\.grader"):
        load_rows(tmp_path, get_task("custom", grader=grader), rows)
    task = custom.from_function("mine", lambda split: [("What?", answer)], grader=grader)
    with pytest.raises(UserError, match=r"row 1.*can't be read back"):
        task.load("train")


def test_your_own_answers_must_not_be_longer_than_a_final_answer_may_be(tmp_path):
    rows = [{"question": "What?", "answer": "x" * 999}]
    with pytest.raises(UserError, match=r"line 1: the answer has 999 characters, more than 400"):
        load_rows(tmp_path, get_task("custom", grader="exact"), rows)


def test_your_own_task_needs_a_file_and_a_known_grader():
    with pytest.raises(UserError, match=r"task\.train_path"):
        get_task("custom").load("train")
    with pytest.raises(UserError, match="Did you mean 'number'"):
        get_task("custom", grader="numbr")


def test_your_own_function_is_a_task(tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(
        "from malt_jax.tasks.custom import from_function\n"
        "def questions(split):\n"
        "    start = 0 if split == 'train' else 100\n"
        "    for i in range(start, start + 5):\n"
        "        yield f'What is {i} + 1?', str(i + 1)\n"
        "TASK = from_function('plus_one', questions)\n"
    )
    monkeypatch.chdir(tmp_path)
    task = get_task("my_task:TASK")
    train, evaluation = task.load("train"), task.load("eval")
    check_overlap(train, evaluation)
    assert len(train) == 5 and train[1].answer == "2"
    assert task.grader.grade(["#### 2"], [train[1]])[0].correct
    assert '"The answer is"' in task.templates["generator"]


def test_your_own_templates_and_grader_are_kept():
    task = custom.from_file("exact", templates={"generator": "Q: {question}"}, name="mine")
    assert task.templates["generator"] == "Q: {question}"
    assert "{generator}" in task.templates["verifier"]
    assert task.name == "mine"


def test_nothing_heavy_is_imported_for_the_names():
    script = (
        "import sys; from malt_jax.tasks import task_names, get_task; get_task('gsm8k');"
        "print({'jax', 'numpy', 'datasets', 'sympy', 'pyarrow', 'transformers'} & set(sys.modules))"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "set()"


def test_ids_hold_no_slash_and_no_blank_surprise(tmp_path):
    rows = [{"id": f"a/{i}/b", "question": f"q{i}", "answer": "#### 1"} for i in range(3)]
    ids = [q.id for q in load_rows(tmp_path, get_task("gsm8k"), rows)]
    assert all(re.fullmatch(r"a-\d-b", identity) for identity in ids)


def test_a_grader_that_would_not_be_asked_is_refused():
    with pytest.raises(UserError, match=r"task\.grader"):
        get_task("gsm8k", grader="number")


@pytest.mark.parametrize("place", ["sys:exit", "os:abort", "builtins:input", ".x:y", ":x"])
def test_what_is_no_module_of_the_users_is_not_called(place):
    with pytest.raises(UserError, match=r"task\.name"):
        get_task(place)


OWN = """
from malt_jax.tasks.custom import from_function
from dataclasses import replace
def pairs():
    return from_function("own", lambda split: [1, 2])
def nothing():
    return replace(from_function("own", lambda split: []), load=lambda *_: None)
def leaves():
    raise SystemExit(0)
"""


@pytest.mark.parametrize(
    ("source", "attribute"),
    [
        *((source, "x") for source in ("x = nope", "x = (", "raise SystemExit(0)", "1 / 0")),
        *((OWN, attribute) for attribute in ("pairs", "nothing", "leaves")),
    ],
)
def test_what_the_users_module_does_wrong_is_said_of_it(tmp_path, monkeypatch, source, attribute):
    name = f"own{abs(hash((source, attribute)))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"task\.name: .*{name}"):
        get_task(f"{name}:{attribute}").load("train")


def test_a_module_of_the_users_may_bear_the_name_of_one_of_pythons(tmp_path, monkeypatch):
    (tmp_path / "turtledemo.py").write_text(
        "from dataclasses import replace\n"
        "from malt_jax.tasks import get_task\n"
        "from malt_jax.tasks.base import Question\n"
        "def load(split, path=None, limit=None, seed=None):\n"
        "    yield Question(f'{split}-1', '1+1', '2')\n"
        "TASK = replace(get_task('gsm8k'), name='mine', load=load)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    [question] = get_task("turtledemo:TASK").load("train")
    assert question.id == "train-1"


def test_digits_above_the_line_make_another_question():
    check_overlap(
        [Question("t", "What is 5² + 1?", "26")], [Question("e", "What is 52 + 1?", "53")]
    )
    with pytest.raises(UserError, match="t = e"):
        check_overlap([Question("t", "5² + 1?", "26")], [Question("e", "5²  + １?", "26")])


def test_what_json_cannot_hold_is_said_before_anything_is_sampled(tmp_path):
    """The trees keep every column of a question."""
    from datetime import date
    from decimal import Decimal

    import pyarrow
    from pyarrow import parquet

    def load(**columns):
        table = pyarrow.table({"question": ["1+1"], "answer": ["2"], **columns})
        parquet.write_table(table, tmp_path / "t.parquet")
        return custom.from_file().load("train", str(tmp_path / "t.parquet"))[0].meta

    meta = load(made=[date(2026, 1, 2)], price=[Decimal("1.50")], score=[math.nan])
    assert meta == {"made": "2026-01-02", "price": "1.50", "score": None}
    with pytest.raises(UserError, match="`raw` holds what JSON cannot"):
        load(raw=[b"\x00"])


def test_choices_of_a_csv_file_are_json_and_may_be_absent(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        'question,answer,choices\n"Which?",A,"[""red"", ""blue""]"\n"What is (A)?",A,\n'
    )
    first, second = custom.from_file("choice").load("train", str(path))[:2]
    assert first.meta["choices"] == {"A": "red", "B": "blue"} and "choices" not in second.meta


OWN_GRADERS = {
    "no_grader": ("object()", "a grader has `extract` and `grade`"),
    "raises": ("Own(lambda t, q: 1 / 0)", "raised ZeroDivisionError"),
    "too_few": ("Own(lambda t, q: [])", "was given 1 texts and returned 0 grades"),
    "no_grades": ("Own(lambda t, q: [True])", "returns one Grade for each"),
}


@pytest.mark.parametrize("name", OWN_GRADERS)
def test_what_the_users_grader_does_wrong_is_said_of_it(tmp_path, monkeypatch, name):
    grader, message = OWN_GRADERS[name]
    (tmp_path / f"graded_{name}.py").write_text(
        "from dataclasses import dataclass, replace\n"
        "from typing import Any\n"
        "from malt_jax.tasks.custom import from_function\n"
        "@dataclass\n"
        "class Own:\n"
        "    grade: Any\n"
        "    def extract(self, text):\n"
        "        return text\n"
        "TASK = replace(\n"
        f"    from_function('own', lambda split: [('1', '1')]), grader={grader}\n"
        ")\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"task\.name: the grader of .*graded_{name}.*{message}"):
        task = get_task(f"graded_{name}:TASK")
        assert task.grader.extract("x") == "x"
        task.grader.grade(["x"], task.load("train"))


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan, math.inf, None, "high"])
def test_a_reward_that_is_no_number_from_0_to_1_is_refused(wrong):
    task = get_task("arithmetic")
    grader = Rewarded(task.grader, lambda question, text, parsed: wrong)
    with pytest.raises(UserError, match=r"question .*; a reward is a finite number from 0 to 1"):
        grader.grade(["=36"], task.load("train", limit=1))


def test_a_reward_is_given_question_text_and_answer_of_graders_of_every_kind(tmp_path, monkeypatch):
    """Of one whose `extract` takes the question, too, and in a module of the user's."""
    (tmp_path / "rewarded_by_length.py").write_text(
        "from dataclasses import replace\n"
        "from malt_jax.tasks.custom import from_function\n"
        "from malt_jax.tasks.rewards import Rewarded\n"
        "def reward(question, text, parsed):\n"
        "    return (len(text) + len(question.text) + 10 * (parsed is not None)) / 100\n"
        "own = from_function('own', lambda split: [('1 + 1?', '2')])\n"
        "TASK = replace(own, grader=Rewarded(own.grader, reward))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = get_task("rewarded_by_length:TASK")
    texts = ["The answer is 2", "The answer is 3", "no"]
    grades = task.grader.grade(texts, task.load("train") * 3)
    assert [grade.correct for grade in grades] == [True, False, False]
    assert [grade.reward for grade in grades] == pytest.approx([0.31, 0.31, 0.08])
    assert task.grader.extract(texts[1], task.load("train")[0]) == "3"


@pytest.mark.parametrize("identity", ["3", "'a/b'", "'same'", "' '"])
def test_questions_of_the_users_own_loader_are_checked(tmp_path, monkeypatch, identity):
    name = f"loaded_{abs(hash(identity))}"
    (tmp_path / f"{name}.py").write_text(
        "from dataclasses import replace\n"
        "from malt_jax.tasks.base import Question\n"
        "from malt_jax.tasks.custom import from_function\n"
        f"rows = [Question('same', 'q', 'a'), Question({identity}, 'q', 'a')]\n"
        "TASK = replace(from_function('own', lambda split: []), load=lambda *_: rows)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="loads a question with id"):
        get_task(f"{name}:TASK").load("train")
