"""A validation split of the training questions: the same under every seed, and never trained on."""

import json
from dataclasses import replace

import pytest

from malt_jax import config
from malt_jax.errors import UserError
from malt_jax.progress import Progress
from malt_jax.stages.session import Session
from malt_jax.tasks.base import Question
from malt_jax.tasks.loading import normalised, set_aside, without


def session(seed=0, **fields):
    data = {"task": {"name": "arithmetic", "num_train": 40, "num_eval": 10, **fields}}
    split = data["task"].pop("split", "eval")
    return Session(
        config.from_dict({**data, "seed": seed, "eval": {"split": split}}),
        None,
        Progress(quiet=True),
    )


def texts(questions):
    return [normalised(question.text) for question in questions]


def test_every_seed_sets_the_same_questions_aside_and_trains_on_none_of_them():
    seen = []
    for seed in (0, 1, 2):
        found = session(seed, num_validation=30, num_eval=None, split="validation")
        seen.append(texts(found.eval_questions))
        assert len(found.train_questions) == 40
        assert not set(texts(found.train_questions)) & set(seen[-1])
        assert texts(session(seed, num_validation=30).eval_questions) == texts(
            session().eval_questions
        )
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0])) == 30
    trained = [texts(session(seed, num_validation=30).train_questions) for seed in (0, 1)]
    assert trained[0] != trained[1]  # what is trained on does depend on the seed


def test_the_number_of_questions_to_evaluate_on_limits_those_set_aside_too():
    every = texts(session(num_validation=30, num_eval=None, split="validation").eval_questions)
    for limit in (10, 1000):
        found = session(num_validation=30, num_eval=limit, split="validation")
        assert texts(found.eval_questions) == every[:limit]


def questions(count):
    return [Question(f"q{i}", f"What is {i}?", str(i)) for i in range(count)]


def test_neither_the_order_of_the_file_nor_repeats_move_a_question():
    pool = questions(20)
    again = replace(pool[3], id="again", text="WHAT  is 3?")
    aside = set_aside(pool, 6)
    assert set(texts(set_aside([*pool[::-1], again], 6))) == set(texts(aside))
    assert texts(set_aside(pool, 9)) and set(texts(aside)) <= set(texts(set_aside(pool, 9)))
    rest = without([*pool, again], set_aside([*pool, again], 6))
    assert not set(texts(rest)) & set(texts(aside))
    assert len(aside) == 6 and len(rest) == 20 + 1 - 6 - (normalised(again.text) in texts(aside))


def test_a_user_s_file_keeps_its_order_and_its_first_questions(tmp_path):
    paths = {}
    for split, names in (("train", range(12)), ("eval", range(100, 104))):
        paths[split] = tmp_path / f"{split}.jsonl"
        rows = [{"question": f"What is {i}?", "answer": str(i)} for i in names]
        paths[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {f"{split}_path": str(path) for split, path in paths.items()}
    given |= {"name": "custom", "num_eval": None, "num_validation": 4}
    every = texts(session(num_train=None, **given).train_questions)
    assert len(every) == 8 and every == sorted(every, key=lambda t: int(t.split()[-1][:-1]))
    assert texts(session(seed=5, num_train=5, **given).train_questions) == every[:5]
    overlapping = given | {"eval_path": given["train_path"]}
    with pytest.raises(UserError, match="12 of 12 evaluation questions are also training"):
        _ = session(num_train=None, **overlapping).train_questions


def test_wrong_numbers_and_a_split_without_questions_are_refused():
    with pytest.raises(UserError, match=r"eval\.split: validation, but no question is set aside"):
        _ = session(split="validation").eval_questions
    with pytest.raises(UserError, match=r"task\.num_validation: 20000 questions to set aside of"):
        _ = session(num_validation=20000).train_questions
    with pytest.raises(UserError, match=r"task\.num_validation: 19999 questions asked for"):
        _ = session(num_validation=10, num_train=19_999).train_questions
