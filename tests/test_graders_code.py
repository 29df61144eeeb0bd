# ruff: noqa: E501 (programs stand on one line each)
"""The code grader: right programs pass; nothing that only pretends to be right does."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from malt_jax.errors import UserError
from malt_jax.tasks.base import Question
from malt_jax.tasks.graders.code import JAIL, CodeGrader

GRADER = CodeGrader(allow_code=True, seconds=10)

ADD = Question(
    "add",
    "",
    "",
    {
        "code": {
            "setup": "import math\n\ndef add(a, b):\n    '''The sum.'''\n",
            "tests": "assert add(1, 2) == 3\nassert add([1], [2, 3]) == [1, 2, 3]\n",
            "names": ["add"],
        }
    },
)

RIGHT = [
    "def add(a, b): return a + b",
    "    return a + b",
    "add = lambda a, b: a + b\ndef unused(): pass",
    "import operator\nadd = operator.add\ndef unused(): pass",
    "class Adder:\n    def __call__(self, a, b): return a + b\nadd = Adder()",
    "def add(a, b):\n    print('x' * 10_000_000)\n    return a + b",
    "import sys\ndef add(a, b):\n    sys.stderr.write('noise')\n    return a + b",
    "from typing import List\ndef add(a: List[int], b): return a + b",
    "import re, json, collections, heapq, itertools, functools\ndef add(a, b): return a + b",
    "from __future__ import annotations\ndef add(a: Unknown, b): return a + b",
    "import asyncio\nasync def sum_(a, b): return a + b\ndef add(a, b): return asyncio.run(sum_(a, b))",
    "def add(a, b):\n    try:\n        open('f', 'w').write('x')\n    except OSError: pass\n    return a + b",
]

WRONG = [
    "def add(a, b): return a - b",
    "def add(a, b): return None",
    "def add(a): return a",
    "def plus(a, b): return a + b",
    "def add(a: Unknown, b): return a + b",
    "def add(a, b) return a + b",
    "def add(a, b): raise ValueError",
    "",
    "I can't do that.",
    "add = 3",
    # leaving with a good exit status
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "raise SystemExit(0)",
    "exit()",
    "quit(0)",
    "def add(a, b):\n    import sys; sys.exit(0)",
    "def add(a, b):\n    import os; os._exit(0)",
    "def add(a, b): raise SystemExit(0)",
    "def add(a, b): raise KeyboardInterrupt",
    "def add(a, b): raise GeneratorExit",
    "def add(a, b): raise StopIteration",
    "import atexit, os\natexit.register(lambda: os._exit(0))",
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "import os, signal\nos.kill(0, signal.SIGTERM)",
    "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "import ctypes\nctypes.string_at(0)",
    "def add(a, b): return add(a, b)",
    "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)",
    # answers that lie about themselves
    "class X:\n    def __eq__(self, o): return True\ndef add(a, b): return X()",
    "class X(int):\n    def __eq__(self, o): return True\ndef add(a, b): return X(7)",
    "class X(list):\n    def __eq__(self, o): return True\ndef add(a, b): return X()",
    "class X(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\ndef add(a, b): return X()",
    "class X:\n    def __getattr__(self, n): return lambda *a: True\ndef add(a, b): return X()",
    "class M(type):\n    def __eq__(c, o): return True\nclass X(metaclass=M): pass\ndef add(a, b): return X",
    "from unittest.mock import ANY\ndef add(a, b): return ANY",
    "from unittest.mock import MagicMock\ndef add(a, b): return MagicMock()",
    "def add(a, b): return float('nan')",
    "def add(a, b): return NotImplemented",
    "def add(a, b): return ['object', 0]",
    "def add(a, b): return ['value', 3]",
    "def add(a, b):\n    while True: yield 1",
    # patching what the tests run on
    "import builtins\nbuiltins.AssertionError = None\ndef add(a, b): return 0",
    "import builtins\nbuiltins.all = lambda *a: True\nbuiltins.print = None\ndef add(a, b): return 0",
    "import builtins\nbuiltins.compile = builtins.exec = lambda *a, **k: None\ndef add(a, b): return 0",
    "import operator\noperator.eq = lambda a, b: True\ndef add(a, b): return 0",
    "import json\njson.dumps = lambda *a, **k: '[\"value\", 3]'\ndef add(a, b): return 0",
    "import sys\nfor m in list(sys.modules.values()):\n    for n in dir(m):\n        pass\nimport wire\ndef add(a, b): return 0",
    "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef add(a, b): return 0",
    "import sys\nsys.excepthook = lambda *a: None\ndef add(a, b): return 0",
    "__name__ = '__main__'\n__builtins__ = {}\ndef add(a, b): return 0",
    "import warnings, gc\ngc.disable()\ndef add(a, b): return 0",
    # looking for the token or the tests
    "import sys\nf = sys._getframe()\nwhile f:\n    for v in f.f_locals.values():\n        try: print(v['token'])\n        except Exception: pass\n    f = f.f_back\ndef add(a, b): return 0",
    "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'token' in o: print(o['token'])\ndef add(a, b): return 0",
    "import sys\nprint(sys.argv, sys.orig_argv)\ndef add(a, b): return 0",
    "import os\nprint(os.environ)\ndef add(a, b): return 0",
    "import sys\nprint(sys.stdin.read())\ndef add(a, b): return 0",
    "import os\nfor fd in range(64):\n    try: print(os.read(fd, 4096))\n    except OSError: pass\ndef add(a, b): return 0",
    "import os\nfor fd in range(64):\n    try: os.write(fd, b'[\"value\", 3]\\n' * 10)\n    except OSError: pass\ndef add(a, b): return 0",
    "import os\nfor fd in range(64):\n    try: os.close(fd)\n    except OSError: pass\ndef add(a, b): return 0",
    "import os\nfor p in os.listdir('/proc'):\n    try: print(open(f'/proc/{p}/cmdline').read(), open(f'/proc/{p}/environ').read())\n    except OSError: pass\ndef add(a, b): return 0",
    "import os\nfor p in range(1, 100):\n    try: open(f'/proc/{p}/mem', 'wb')\n    except OSError: pass\ndef add(a, b): return 0",
    "import os\nprint(open('/proc/self/mem', 'rb').read(10))\ndef add(a, b): return 3",
    "import inspect\nprint(inspect.stack())\ndef add(a, b): return 0",
    "import ctypes\nctypes.CDLL(None).ptrace(16, 1, 0, 0)\ndef add(a, b): return 0",
    # using up the machine
    "while True: pass",
    "def add(a, b):\n    while True: pass",
    "import time\ntime.sleep(1000)",
    "x = 'x' * 10**12",
    "x = []\nwhile True: x.append('x' * 10**7)",
    "import os\nos.fork()\ndef add(a, b): return a + b",
    "import os\nwhile True: os.fork()",
    "import threading\nthreading.Thread(target=print).start()\ndef add(a, b): return a + b",
    "import subprocess\nsubprocess.run(['true'])\ndef add(a, b): return a + b",
    "import os\nos.execv('/bin/true', ['true'])",
    "import os\nos.system('true') and 1 / 0\nos.fork()\ndef add(a, b): return a + b",
    "def add(a, b): return 'x' * 10**8",
    "def add(a, b): return 10 ** (10 ** 7)",
    "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "x = 9 ** 9 ** 9",
    "import re\nre.match('(a+)+$', 'a' * 100 + 'b')",
    # reaching out
    "open('/etc/passwd').read()\ndef add(a, b): return a + b",
    "open('/tmp/left_behind', 'w').write('x')\ndef add(a, b): return a + b",
    "open('left_behind', 'w').write('x')\ndef add(a, b): return a + b",
    "import os\nos.listdir('/')\ndef add(a, b): return a + b",
    "import os\nos.listdir('/home')\ndef add(a, b): return a + b",
    "import os\nos.mkdir('x')\ndef add(a, b): return a + b",
    "import os\nos.remove(os.__file__)\ndef add(a, b): return a + b",
    "import os\nos.chmod('.', 0)\nopen('f', 'w')\ndef add(a, b): return a + b",
    "import os\nos.environ['HOME']\ndef add(a, b): return a + b",
    "import os\nos.setuid(0)\ndef add(a, b): return a + b",
    "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)\ndef add(a, b): return a + b",
    "import socket\nsocket.socket().connect(('1.1.1.1', 53))\ndef add(a, b): return a + b",
    "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=1)\ndef add(a, b): return a + b",
    "import os\nos.kill(1, 9)\nos.fork()\ndef add(a, b): return a + b",
    # memory that no limit counts, and parts of the kernel that no solution needs
    "import ctypes\nassert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0\ndef add(a, b): return a + b",
    "import ctypes\nassert ctypes.CDLL(None).msgget(0, 0o1600) >= 0\ndef add(a, b): return a + b",
    "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\ndef add(a, b): return a + b",
    "import ctypes\nassert ctypes.CDLL(None).syscall(425, 1, bytes(200)) >= 0\ndef add(a, b): return a + b",
    "import socket\nsocket.socket(16, 3, 0)\ndef add(a, b): return a + b",
    "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0name')\ndef add(a, b): return a + b",
]  # fmt: skip

# Programs whose end is a limit; they are run with a short one.
ENDLESS = (
    "sleep",
    "while",
    "(a+)+",
    "9 ** 9",
    "10 ** 7",
    "10**8",
    "10**9",
    "10**12",
    "fd in range",
)
SLOW = [code for code in WRONG if any(mark in code for mark in ENDLESS)]


def isolated() -> bool:
    """Whether this system gives the grader every layer (some tests are about those)."""
    import subprocess
    import sys

    script = (
        "import sys; sys.path.append(sys.argv[1]); from jail import limits;"
        "print(limits.enter(9, 1<<30))"
    )
    said = subprocess.run(
        [sys.executable, "-I", "-c", script, str(JAIL.parent)], capture_output=True, text=True
    ).stdout
    return all(layer in said for layer in ("namespaces", "landlock", "seccomp"))


def fenced(code: str) -> str:
    return f"Here it is.\n\n```python\n{code}\n```\nDone."


def test_right_programs_pass():
    grades = GRADER.grade([fenced(code) for code in RIGHT], [ADD] * len(RIGHT))
    assert [c for c, grade in zip(RIGHT, grades, strict=True) if not grade.correct] == []


def test_programs_that_pretend_fail():
    if not isolated():
        pytest.skip("this system offers no namespaces, no Landlock or no seccomp")
    quick = [code for code in WRONG if code not in SLOW]
    grades = GRADER.grade([fenced(code) for code in quick], [ADD] * len(quick))
    assert [c for c, grade in zip(quick, grades, strict=True) if grade.correct] == []
    assert not os.path.exists("/tmp/left_behind") and not os.path.exists("left_behind")


@pytest.mark.timeout(120)
def test_programs_without_end_fail_in_bounded_time():
    grader = CodeGrader(allow_code=True, seconds=1)
    start = time.monotonic()
    grades = grader.grade([fenced(code) for code in SLOW], [ADD] * len(SLOW))
    assert not any(grade.correct for grade in grades)
    assert time.monotonic() - start < 4 * len(SLOW) + 10


def orphans() -> set[int]:
    """Processes of the grader whose parent is gone."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_text()
            parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]
            if str(JAIL) in command and parent == "1":
                found.add(int(name))
    return found


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks for processes in /proc")
@pytest.mark.parametrize("place", ["", "def add(a, b):\n    "], ids=["when loaded", "when called"])
def test_nothing_outlives_its_grading(place):
    before = orphans()
    code = "import ctypes, os, signal, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); os.setsid()"
    code += "; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    grades = CodeGrader(allow_code=True, seconds=2).grade([fenced(place + code)], [ADD])
    assert not grades[0].correct
    assert orphans() <= before


def test_code_whose_processes_did_not_start_is_run_again(monkeypatch):
    judged, hangs = CodeGrader._judged, [True]

    def from_the_second_time_on(*given):
        return "" if hangs and hangs.pop() else judged(*given)

    monkeypatch.setattr(CodeGrader, "_judged", from_the_second_time_on)
    assert GRADER.grade([fenced(RIGHT[0])], [ADD])[0].correct
    monkeypatch.setattr(CodeGrader, "_judged", lambda *given: "")
    assert not GRADER.grade([fenced(RIGHT[0])], [ADD])[0].correct


def test_the_tables_are_large_enough():
    assert len(RIGHT) + len(WRONG) >= 100


def test_code_is_run_only_when_asked_for():
    with pytest.raises(UserError, match=r"allow_code.*not in a virtual machine"):
        CodeGrader()


@pytest.mark.parametrize(
    ("setup", "tests", "names", "code", "verdict"),
    [
        # objects of the solution's own classes can be made and handed back
        ("", "assert area(Box(2, 3)) == 6", ["Box", "area"],
         "class Box:\n    def __init__(s, a, b): s.a, s.b = a, b\ndef area(x): return x.a * x.b", True),
        ("", "assert f(2)(3) == 5", ["f"], "def f(a): return lambda b: a + b", True),
        # results keep their types
        ("", "assert f() == (1, [2], {3: {4}}, None, True, 1.5, b'x')", ["f"],
         "def f(): return (1, [2], {3: {4}}, None, True, 1.5, b'x')", True),
        ("", "assert f() == [1]", ["f"], "def f(): return (1,)", False),
        ("", "assert list(f()) == [0, 1]", ["f"], "def f(): yield from range(2)", True),
        ("", "assert f() == [0, 1]", ["f"], "def f(): yield from range(2)", False),
        ("", "assert f() == 0.1 + 0.2", ["f"], "def f(): return 0.1 + 0.2", True),
        ("", "assert f() == 2 ** 200", ["f"], "def f(): return 2 ** 200", True),
        ("", "assert f() == 10 ** 5000", ["f"], "def f(): return 10 ** 5000", True),
        ("", "assert f([10 ** 5000]) == {-(10 ** 5000): 1}", ["f"], "def f(a): return {-a[0]: 1}", True),
        ("", "assert f() == 10 ** 5000", ["f"], "def f(): return 10 ** 5000 + 1", False),
        ("", "assert f()", ["f"], "def f(): return object()", False),
        # exceptions arrive as themselves
        ("", "try:\n    f()\nexcept ValueError:\n    pass\nelse:\n    assert False", ["f"],
         "def f(): raise ValueError('no')", True),
        ("", "try:\n    f()\nexcept ValueError:\n    pass\nelse:\n    assert False", ["f"],
         "def f(): raise KeyError('no')", False),
        ("", "try:\n    f()\nexcept Exception:\n    pass", ["f"], "def f():\n    import os; os._exit(0)",
         False),
        ("", "try:\n    f()\nexcept ValueError:\n    pass\nelse:\n    assert False", ["f"],
         "class Odd(ValueError): pass\ndef f(): raise Odd('no')", True),
        ("", "try:\n    f()\nexcept ValueError:\n    pass\nelse:\n    assert False", ["f"],
         "import json\ndef f(): json.loads('{')", True),
        ("", "try:\n    f()\nexcept UnicodeError:\n    pass\nelse:\n    assert False", ["f"],
         "def f(): return '\u00e9'.encode('ascii')", True),
        ("", "try:\n    f()\nexcept RuntimeError:\n    pass", ["f"],
         "class Odd(Exception): pass\ndef f(): raise Odd('no')", False),
        # no exception ends a loop of the tests early, no `except` forgives a dead solution
        ("", "assert all(map(lambda t: f(t) == t + 1, [1, 2, 3]))", ["f"],
         "def f(x): raise StopIteration", False),
        ("", "for got, want in zip(map(f, [1, 2]), [2, 3]):\n    assert got == want", ["f"],
         "class Odd(StopIteration): pass\ndef f(x): raise Odd", False),
        ("", "assert f(1) == 1\ntry:\n    f(-1)\nexcept:\n    pass\nelse:\n    assert False", ["f"],
         "import os\ndef f(x):\n    if x < 0: os._exit(0)\n    return x", False),
        ("", "assert f(1) == 1\ntry:\n    f(-1)\nexcept:\n    pass\nelse:\n    assert False", ["f"],
         "def f(x):\n    if x < 0: raise SystemExit\n    return x", False),
        # more of Python's own types
        ("", "assert sorted(f()[0]) == ['a'] and f()[0] == {'a'} and list(f()[1]) == [1]", ["f"],
         "def f(): return {'a': 1}.keys(), {'a': 1}.values()", True),
        ("", "assert list(f()) == [('a', [1])]", ["f"], "def f(): return {'a': [1]}.items()", True),
        ("", "assert list(f()) == [1, 2]", ["f"],
         "from collections import deque\ndef f(): return deque([1, 2])", True),
        ("", "assert f() == [1, 2]", ["f"],
         "from collections import deque\ndef f(): return deque([1, 2])", False),
        ("", "assert f() == (2, 2)", ["f"],
         "from decimal import *\nfrom fractions import *\ndef f(): return Fraction(4, 2), Decimal(2)", True),
        ("", "assert f() == b'x'", ["f"], "def f(): return bytearray(b'x')", True),
        ("from datetime import *", "assert f(date(2020, 1, 31)) == date(2020, 2, 1)", ["f"],
         "def f(day): return day + timedelta(1)", True),
        ("from datetime import *", "assert f() == date(2020, 1, 1)", ["f"],
         "def f(): return datetime(2020, 1, 1)", False),
        # what gives None may work in place; what gives a value can't change what it is compared with
        ("", "l = [3, 1]\nf(l)\nassert l == [1, 3]", ["f"], "def f(l): l.sort()", True),
        ("", "l = [3, 1]\nf(l)\nassert l == [1, 3]", ["f"], "def f(l): l = sorted(l)", False),
        ("", "d, s, b = {1: [2]}, {1}, bytearray(b'x')\nf(d, s, b=b)\nassert (d, s, b) == ({2: 3}, {1, 2}, b'xy')",
         ["f"], "def f(d, s, b):\n    d.clear()\n    d[2] = 3\n    s.add(2)\n    b += b'y'", True),
        ("", "l = [3, 1]\nassert f(l) == sorted(l)", ["f"],
         "def f(l):\n    l.clear()\n    return []", False),
        # objects of the solution's own classes, made beside it
        ("", "assert area(f(box)) == 6", ["area", "f", "box"],
         "class Box: pass\nbox = Box()\nbox.a = 6\ndef f(x): return x\ndef area(x): return x.a", True),
        # types and functions of Python's own are arguments and results
        ("", "assert f((4, 5, 7.7, 'x'), int) == [7.7, 'x']", ["f"],
         "def f(values, kind): return [v for v in values if not isinstance(v, kind)]", True),
        ("", "assert f([1, '2', 3.0]) == [int, str, float]", ["f"], "def f(l): return [type(v) for v in l]", True),
        ("", "assert f([1, '2', 3.0]) == [int, str, int]", ["f"], "def f(l): return [type(v) for v in l]", False),
        ("", "assert f(['aa', 'b'], len) == ['b', 'aa']", ["f"], "def f(l, key): return sorted(l, key=key)", True),
        ("", "assert f(3) == int", ["f"], "def f(x): return exec", False),
        # where the benchmark asks for a function that Python has as well, Python's is no answer
        ("", "assert max([1, 2]) == 2", ["max"], "def f(x): return max(x)", False),
        ("", "assert max([1, 2]) == 2", ["max"], "def max(x): return sorted(x)[-1]", True),
        ("", "assert f(3) == int", ["f"], "class int: pass\ndef f(x): return int", False),
        # helpers of the setup serve both sides
        ("def twice(x): return 2 * x\n\ndef f(x):\n    '''Half.'''\n", "assert f(twice(4)) == 4",
         ["f"], "    return x // 2", True),
        ("def twice(x): return 2 * x\n\ndef f(x):\n    '''Four times.'''\n", "assert f(4) == 16",
         ["f"], "def f(x):\n    return twice(twice(x))", True),
    ],
)  # fmt: skip
def test_values_cross_between_judge_and_solution(setup, tests, names, code, verdict):
    question = Question("q", "", "", {"code": {"setup": setup, "tests": tests, "names": names}})
    assert GRADER.grade([fenced(code)], [question])[0].correct == verdict


# Answers of small instruct models to ADD: without fences, with prose, with tests of their own.
MODELS_RIGHT = [
    "Here is the function:\n\ndef add(a, b):\n    return a + b\n\nThis function adds two values.",
    "def add(a, b):\n    return a + b\n\n# Test\nprint(add(1, 2))",
    "The function is `def add(a, b): return a + b`.",
    "Solution: def add(a, b):\n    return a + b\nDone",
    "Sure! Here's the code:\nimport operator\n\ndef add(a, b):\n    return operator.add(a, b)\n\nHope this helps!",
    "[BEGIN]\ndef add(a, b):\n    return a + b\n[DONE]",
    "To add, use +.\n\n    def add(a, b):\n        return a + b\n\nThat is all.",
    "First a helper.\n\ndef plus(a, b):\n    return a + b\n\nThen the function.\n\ndef add(a, b):\n    return plus(a, b)\n\nIt works.",
    'def add(a, b):\n    """Adds.\n\nSecond paragraph at the margin.\n    """\n    return a + b\nExplanation: it adds.',
    "def add(a, b):\n    # add them\n\n    return (a +\nb)\nDone",
    "We define class Adder and the function.\n\nclass Adder:\n    def run(self, a, b):\n        return a + b\n\ndef add(a, b):\n    return Adder().run(a, b)\n",
    "from functools import reduce\n\ndef add(*values):\n    return reduce(lambda a, b: a + b, values)\nThe time complexity is O(n).",
    "ZERO = 0\ndef add(a, b):\n    return a + b if ZERO == 0 else None\nNote: ZERO is a constant.",
    "Attempt 1:\ndef add(a, b):\n    return a - b\n\nThat is wrong. Attempt 2:\ndef add(a, b):\n    return a + b\n",
    "import math\n\n@staticmethod\ndef helper(a):\n    return a\n\ndef add(a, b):\n    return a + b\n\nassert add(1, 2) == 3",
    "def add(a, b):\n\treturn a + b\nThis uses tabs.",
    "```python\ndef add(a, b):\n    return a + b\n```\nExplanation: `def add(a, b)` takes two values.",
    "```python\ndef add(a, b):\n    return a + b\n```\n\nExample:\n```python\n>>> add(1, 2)\n3\n```",
    "```Python\ndef add(a, b):\n    return a + b\n```",
    "```py\nfrom typing import Any\n\ndef add(a: Any, b: Any) -> Any:\n    return a + b\n```",
    "Here is the code:\r\n\r\ndef add(a, b):\r\n    return a + b\r\n\r\nDone.",
    "async def other(): pass\n\ndef add(a, b):\n    return a + b\nDone.",
    "The answer is:\n\n\n\ndef add(first, second):\n\n    total = first + second\n\n    return total\n\n\nYou can call it.",
    "Let's import what we need.\nimport itertools\n\nThe function:\ndef add(a, b):\n    return list(itertools.chain(a, b)) if isinstance(a, list) else a + b",
    "1. Define it:\ndef add(a, b):\n    return a + b\n2. Use it.",
    "def add(a, b):\n    if isinstance(a, list):\n        return [*a, *b]\n    return a + b",
    "def add(a, b): return a + b",
    "    c = a + b\n    return c",
    "    def inner(x, y):\n        return x + y\n    return inner(a, b)",
    "    import operator\n    return operator.add(a, b)",
]
MODELS_WRONG = [
    "The function adds a and b and returns a + b.",
    "def add(a, b)\n    return a + b",
    "Here is the function:\n\ndef add(a, b):\n    return a * b\n\nThis adds.",
    "Attempt 1:\ndef add(a, b):\n    return a + b\n\nBetter:\ndef add(a, b):\n    return a - b\n",
    "def plus(a, b):\n    return a + b\n\nCall plus instead of add.",
    "def add(a, b):\n    return plus(a, b)\n\nwhere plus adds.",
    "def add(a, b):\n    a + b\n",
    "def add(a, b):\n    print(a + b)\n",
    "def add(a, b):\n    return 3\n",
    "def add(a, b):\n    return str(a + b)\n",
    "def add(a, b):\n    return float(a + b) if isinstance(a, int) else (*a, *b)\n",
    "def add(a, b):\n    return [a + b]\n",
    "def add(a, b):\n    pass\n",
    "def add(a, b):\n    ...\n",
    "def add(a, b):\n    # TODO\n",
    "def add(a, b):\n    raise NotImplementedError\n",
    "def add():\n    return 1 + 2\n",
    "def add(a, b, c):\n    return a + b + c\n",
    "def Add(a, b):\n    return a + b\n",
    "class add:\n    def __init__(self, a, b): self.sum = a + b\n",
    "add(a, b) = a + b",
    "function add(a, b) { return a + b; }",
    "def add(a, b):\nreturn a + b",
    "```python\ndef add(a, b):\n    return a + b + 1\n```\nor\n`def add(a, b): return a + b`",
    "```python\ndef add(a, b):\n    return a + b\n```\nBut this is wrong. Correct:\n```python\ndef add(a, b):\n    return b + b\n```",
    "assert add(1, 2) == 3\nassert add([1], [2, 3]) == [1, 2, 3]",
    "def add(a, b):\n    return sum([a, b])\n",
    "def add(a, b):\n    return {3: 3}.get(a + b, None) if isinstance(a, int) else a\n",
    "def add(a, b):\n    a += b\n    return None\n",
    "def add(a, b):\n    yield a + b\n",
    "import add\n",
]


def test_answers_of_models_are_cut_out_of_their_prose():
    grades = GRADER.grade(MODELS_RIGHT, [ADD] * len(MODELS_RIGHT))
    assert [c for c, grade in zip(MODELS_RIGHT, grades, strict=True) if not grade.correct] == []
    grades = GRADER.grade(MODELS_WRONG, [ADD] * len(MODELS_WRONG))
    assert [c for c, grade in zip(MODELS_WRONG, grades, strict=True) if grade.correct] == []
    assert len(MODELS_RIGHT) >= 30 and len(MODELS_WRONG) >= 30


WHOLE = "def add(a, b):\n    return a + b"
HELPED = "def add(a, b):\n    return plus(a, b)"
PLUS = "def plus(a, b):\n    return a + b"
QUOTING = 'def add(a, b):\n    """\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b'


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\ndef f(): pass\n```", "def f(): pass"),
        ("```\ndef f(): pass\n```\nTest:\n```python\nf()\n```", "def f(): pass"),
        ("```python\ndef f(): 1\n```\nBetter:\n```python\ndef f(): 2\n```", "def f(): 2"),
        ("```python\ndef f(): pass", "def f(): pass"),
        ("def f(): pass", "def f(): pass"),
        ("", None),
        ("  \n", None),
        # the ways to write a fence
        (f"``` python\n{WHOLE}\n```", WHOLE),
        (f'```python title="a.py"\n{WHOLE}\n```', WHOLE),
        (f"~~~python\n{WHOLE}\n~~~", WHOLE),
        (f"````python\n{WHOLE}\n````\n", WHOLE),
        (f"Here: ```python\n{WHOLE}```\nDone.", WHOLE),
        (fenced(WHOLE).replace("\n", "\r\n"), WHOLE),
        (f"1. So:\n\n   ```python\n   {WHOLE.replace(chr(10), chr(10) + '   ')}\n   ```\n", WHOLE),
        (fenced("    return a + b"), "    return a + b"),
        (fenced(QUOTING), QUOTING),
        ("> " + fenced(WHOLE).replace("\n", "\n> "), WHOLE),
        (f"<answer>{WHOLE}</answer>", WHOLE),
        (f"So: <code>{WHOLE}</code> It adds.", WHOLE),
        (f"```python\n{WHOLE}\n```python\n", WHOLE),
        (f"```python\nx = 1\n\nBetter:\n```python\n{WHOLE}\n```", WHOLE),
    ],
)
def test_the_last_definition_is_extracted(text, code):
    assert GRADER.extract(text) == code


@pytest.mark.parametrize(
    ("blocks", "code"),
    [
        ([WHOLE, "def test_add():\n    assert add(1, 2) == 3\ntest_add()"], WHOLE),
        ([WHOLE, "class Main: pass", "add(1, 2)"], WHOLE),
        ([WHOLE, "from solution import add\ndef main(): print(add(1, 2))"], WHOLE),
        (["def add(a, b): return 0", WHOLE], WHOLE),
        ([PLUS, HELPED], f"{PLUS}\n{HELPED}"),
        (["import operator as o", "plus = 3", "def add(a, b): return o.add(a, b)"],
         "import operator as o\ndef add(a, b): return o.add(a, b)"),
        ([PLUS, HELPED, "def minus(a, b): return a - b"], f"{PLUS}\n{HELPED}"),
        (["def add(a, b): return 0", PLUS, HELPED], f"{PLUS}\n{HELPED}"),
        (["def plus(a, b): return 0", WHOLE], WHOLE),
        ([HELPED, PLUS], f"{HELPED}\n{PLUS}"),
        ([WHOLE, "a = int(input())\nprint(add(a, 1))"], WHOLE),
        ([WHOLE, "def b(): pass"], WHOLE),
        (["    return a + b"], "    return a + b"),
        (["    def add(a, b):\n        return a + b"], WHOLE),
    ],
)  # fmt: skip
def test_the_blocks_that_are_asked_for_are_extracted(blocks, code):
    assert GRADER.extract("\nSo:\n".join(map(fenced, blocks)), ADD) == code


def test_extraction_ends():
    for text in (
        "```",
        "~~~",
        "~" * 9 + "`",
        "`",
        " ",
        "\n",
        "from a import ",
        "```python\n",
        "@a\n",
    ):
        start = time.process_time()
        GRADER.extract(text * 50_000, ADD)
        assert time.process_time() - start < 5
