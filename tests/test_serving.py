"""`malt serve`: asked over HTTP by the `openai` client, alone, by many at once, and by bad ones."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import uvicorn

import cli_run
from malt_jax import cli
from malt_jax.answering.turns import GraderFailed, Turn
from malt_jax.config.pipeline import RoleConfig
from malt_jax.errors import UserError
from malt_jax.models.thoughts import WrittenThoughts
from malt_jax.pipeline import Pipeline
from malt_jax.sampling.request import SamplingParams
from malt_jax.serving import exchange, server
from malt_jax.serving.app import Limits, Service
from malt_jax.serving.engine import Engine
from malt_jax.serving.metrics import Metrics
from malt_jax.serving.requests import parse_request
from malt_jax.serving.stops import StopFilter, before_stop
from malt_jax.serving.turns_in_order import InOrder
from malt_jax.tree.roles import Chain, Role

ROLES = ("generator", "verifier", "refiner")


def start(*words: str) -> tuple[subprocess.Popen, int]:
    """A server on a free port, once it is ready."""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.getcwd()])}
    process = subprocess.Popen(
        [sys.executable, "-m", "malt_jax.cli", "serve", "--run", str(cli_run.trained()),
         "--trust-task-code", "--quiet", "--port", "0", *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    address = process.stdout.readline()
    assert address.startswith("http://127.0.0.1:"), process.stderr.read()
    return process, int(address.rpartition(":")[2].partition("/")[0])


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    process, port = start()
    yield port
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(cli_run.trained(), trust_task_code=True)


def client(port: int, **more) -> openai.OpenAI:
    more = {"api_key": "none", "max_retries": 0, "timeout": 120, **more}
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", **more)


def asked(port: int, model: str, question: str = "e1+1=?", **more):
    message = {"role": "user", "content": question}
    return client(port).chat.completions.create(model=model, messages=[message], **more)


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read().decode()


def post(port: int, body: bytes | dict, **headers: str) -> tuple[int, dict]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/chat/completions", raw, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


# A trained run over HTTP --------------------------------------------------------------------------


def test_the_chain_its_vote_and_each_role_are_models(port):
    names = [model.id for model in client(port).models.list()]
    assert names == ["malt", "malt@3", *ROLES]
    assert client(port).models.retrieve("malt@7").id == "malt@7"
    with pytest.raises(openai.NotFoundError, match="malt@3, generator"):
        client(port).models.retrieve("gpt")


def test_the_endpoint_answers_as_the_pipeline_does(port, pipeline):
    for model, votes in (("malt", 1), ("malt@3", 3)):
        expected = pipeline.ask("e1+1=?", votes=votes)
        reply = asked(port, model)
        [choice] = reply.choices
        assert choice.message.content == expected.text and choice.message.role == "assistant"
        assert choice.malt["prediction"] == expected.prediction
        assert choice.malt["votes"] == list(expected.votes)
        told = [[turn["text"] for turn in draw] for draw in choice.malt["draws"]]
        assert told == [[turn.text for turn in draw] for draw in expected.draws]
        tokens = sum(turn.tokens for draw in expected.draws for turn in draw)
        assert reply.usage.completion_tokens == tokens and reply.usage.prompt_tokens > tokens
        last = expected.turns[-1].finish
        assert choice.finish_reason == ("length" if last == "length" else "stop")


def test_each_role_answers_after_the_turns_before_it(port, pipeline):
    turns = pipeline.ask("e1+1=?", votes=1).turns
    messages = [{"role": "user", "content": "e1+1=?"}]
    for role, turn in zip(ROLES, turns, strict=True):
        reply = client(port).chat.completions.create(model=role, messages=messages)
        assert reply.choices[0].message.content == turn.text
        assert reply.usage.completion_tokens == turn.tokens
        messages.append({"role": "assistant", "content": turn.text})


def test_seed_and_number_of_choices_choose_the_draws(port, pipeline):
    answers = pipeline.ask("e1+1=?", votes=3, seed=5).draws
    reply = asked(port, "malt", n=3, seed=5)
    assert [c.message.content for c in reply.choices] == [turns[-1].text for turns in answers]
    assert asked(port, "malt", seed=6).choices[0].malt != asked(port, "malt").choices[0].malt


def test_sampling_parameters_of_a_request_count(port):
    short = asked(port, "generator", max_tokens=2).choices[0]
    assert len(short.malt["draws"][0][0]["text"]) <= 2
    greedy = {asked(port, "generator", temperature=0, seed=s).choices[0].message.content
              for s in range(3)}  # fmt: skip
    assert len(greedy) == 1
    text = asked(port, "generator").choices[0].message.content
    stopped = asked(port, "generator", stop=text[0]).choices[0]
    assert stopped.message.content == "" and stopped.finish_reason == "stop"
    assert stopped.malt["draws"][0][0]["text"] == text[0]  # what was sampled is told as a whole


def test_what_may_begin_a_stop_text_is_held_back():
    stream = StopFilter(("\n\n", "END", "ab"))
    pieces = [stream.add(piece) for piece in ("x\n", "y", "E", "N", "d a", "EN", "D after", "ab")]
    assert pieces == ["x", "\ny", "", "", "ENd ", "a", "", ""]
    assert stream.finish("x\nyENd aEND after") == ""
    ended = StopFilter(("END",))
    assert ended.add("12E") == "12" and ended.finish("12E") == "E"
    assert before_stop("one, two", ("two", ",")) == "one" and before_stop("one", ()) == "one"


def test_a_stop_text_is_in_no_answer_whole_or_streamed():
    with served() as here:
        for model in ("malt", "malt@3"):
            whole = asked(here.port, model, "12 END 34", stop=[" END", "34"])
            assert whole.choices[0].message.content == "12"
            chunks = asked(here.port, model, "12 END 34", stop=[" END", "34"], stream=True)
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "12"


def test_a_stream_tells_every_turn_and_ends_with_the_answer(port, pipeline):
    for model, votes in (("malt", 1), ("malt@3", 3)):
        expected = pipeline.ask("e2+2=?", votes=votes)
        heard: dict[tuple[int, str], str] = {}
        content, usage, reasons, before = "", None, [], ""
        options = {"include_usage": True}
        for chunk in asked(port, model, "e2+2=?", stream=True, stream_options=options):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                content += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
                thought = getattr(choice.delta, "reasoning_content", None)
                before += thought or ""
                if thought or (choice.delta.content and votes == 1):
                    key = choice.malt["draw"], choice.malt["role"]
                    heard[key] = heard.get(key, "") + (thought or choice.delta.content)
        assert content == expected.text and len(reasons) == 1
        told = {(n, turn.role): turn.text for n, draw in enumerate(expected.draws)
                for turn in draw if turn.text}  # fmt: skip
        # Each turn but the first begins with the empty line that separates it.
        first = next(iter(heard))
        assert heard.keys() == told.keys()
        for key, text in heard.items():
            between = "" if key == first or (votes == 1 and key[1] == ROLES[-1]) else "\n\n"
            assert text == between + told[key]
        if votes == 1:
            assert before == "\n\n".join(t.text for t in expected.turns[:-1] if t.text)
        else:
            assert sorted(before) == sorted("\n\n".join(told.values()))
        whole = asked(port, model, "e2+2=?").choices[0].message
        earlier = [turn.text for turn in expected.turns[:-1] if turn.text]
        assert getattr(whole, "reasoning_content", "") == "\n\n".join(earlier)
        assert usage.completion_tokens == sum(t.tokens for d in expected.draws for t in d)


def test_64_clients_at_once_get_their_own_answers_in_common_batches(port, pipeline):
    questions = [f"e{n}+{n}=?" for n in range(64)]
    expected = [answer.text for answer in pipeline.ask_many(questions, votes=1)]
    before = counts(port)
    with ThreadPoolExecutor(64) as threads:
        replies = list(threads.map(lambda q: asked(port, "malt", q), questions))
    assert [reply.choices[0].message.content for reply in replies] == expected
    calls, draws = (after - b for after, b in zip(counts(port), before, strict=True))
    assert draws == 64 * 3 and calls < draws / 2


def counts(port: int) -> tuple[float, float]:
    """Calls of the sampler and draws in them, over all roles."""
    _, text = get(port, "/metrics")
    return tuple(sum(map(float, re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)))
                 for name in ("malt_batches_total", "malt_batch_draws_total"))  # fmt: skip


USER = [{"role": "user", "content": "e1+1=?"}]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[]", 400, "expected an object"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'{"temperature": NaN}', 400, "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", 400, "not JSON"),
        (b'"' + b"a" * (1 << 18) + b'"', 413, "longer than"),
        ({"messages": USER}, 400, "model: is missing"),
        ({"model": None, "messages": USER}, 400, "model: is missing"),
        ({"model": "gpt", "messages": USER}, 404, "malt@3"),
        ({"model": "malt@0", "messages": USER}, 404, "malt@3"),
        ({"model": "malt@65", "messages": USER}, 404, "malt@3"),
        ({"model": "malt"}, 400, "messages"),
        ({"model": "malt", "messages": []}, 400, "messages"),
        ({"model": "malt", "messages": ["a"]}, 400, "messages.0"),
        ({"model": "malt", "messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0"),
        ({"model": "malt", "messages": [{"role": "user", "content": 3}]}, 400, "messages.0"),
        ({"model": "malt", "messages": [{"role": "user", "content": " "}]}, 400, "no question"),
        ({"model": "malt", "messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
        ({"model": "malt", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         400, "only parts of type text"),
        ({"model": "malt", "messages": [*USER, {"role": "assistant", "content": "a"}]}, 400,
         "holds no conversation; send one question without assistant messages"),
        ({"model": "malt@3", "messages": [*USER, {"role": "assistant", "content": "a"}, *USER]},
         400, "holds no conversation"),
        ({"model": "malt", "messages": USER, "stream_options": {"include_usage": True}}, 400,
         "belongs to a stream"),
        ({"model": "malt", "messages": USER, "stream_options": {}}, 400, "belongs to a stream"),
        ({"model": "malt", "messages": USER, "stream": True, "stream_options": {"usage": True}},
         400, "'usage' is unknown"),
        ({"model": "malt", "messages": USER, "stream": True, "stream_options": []}, 400,
         "expected an object"),
        ({"model": "malt", "messages": USER, "best_of": 2}, 400, "not supported"),
        ({"model": "malt", "messages": USER, "chat_template_kwargs": {"a": 1}}, 400,
         "not supported"),
        ({"model": "malt", "messages": [{"role": "user", "content": [{"type": [], "text": "a"}]}]},
         400, "only parts of type text"),
        ({"model": "refiner", "messages": USER}, 400, "generator, verifier"),
        ({"model": "malt", "messages": USER, "n": 0}, 400, "n: found 0"),
        ({"model": "malt@3", "messages": USER, "n": 30}, 400, "64 draws"),
        ({"model": "malt", "messages": USER, "temperature": -1}, 400, "temperature"),
        ({"model": "malt", "messages": USER, "temperature": True}, 400, "temperature"),
        ({"model": "malt", "messages": USER, "top_p": 0}, 400, "top_p"),
        ({"model": "malt", "messages": USER, "max_tokens": "many"}, 400, "max_tokens"),
        ({"model": "malt", "messages": USER, "stop": [""]}, 400, "stop"),
        ({"model": "malt", "messages": USER, "stop": {}}, 400, "stop"),
        ({"model": "malt", "messages": USER, "stop": 0}, 400, "stop"),
        ({"model": "malt", "messages": USER, "stop": ["a"] * 17}, 400, "stop"),
        ({"model": "malt", "messages": USER, "stream": "yes"}, 400, "stream"),
        ({"model": "malt", "messages": USER, "tools": [{}]}, 400, "not supported"),
        ({"model": "malt", "messages": USER, "logprobs": True}, 400, "not supported"),
        ({"model": "malt", "messages": USER, "function_call": {"name": "f"}}, 400, "not supported"),
        ({"model": "malt", "messages": USER, "temprature": 1}, 400, "unknown field"),
        ({"model": "malt", "messages": USER, "\ud800": 1}, 400, "unknown field"),
        ({"model": "malt", "messages": [{"role": "user", "content": "a" * 5000}]}, 400,
         "shorten the question, or lower max_tokens."),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_bad_request_gets_an_error_object_that_says_what_is_wrong(port, body, status, message):
    found, reply = post(port, body)
    assert found == status and message in reply["error"]["message"]
    assert {"message", "type", "param", "code"} == reply["error"].keys()


def test_paths_methods_types_and_names_that_are_not_served_are_refused(port):
    assert get(port, "/v1/nothing")[0] == 404
    for method, path in (("POST", "/v1/chat/completions/"), ("GET", "/health/")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path, b"{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 404 and "error" in json.loads(response.read())
    status, body = get(port, "/v1/chat/completions")
    assert status == 405 and "error" in json.loads(body)
    body = {"model": "malt", "messages": USER}
    assert post(port, body, **{"Content-Type": "text/plain"})[0] == 415
    assert post(port, body, Host="evil.example")[0] == 403


def test_the_server_goes_on_after_disconnects_and_garbage(port):
    body = json.dumps({"model": "malt@3", "messages": USER, "stream": True, "n": 20}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    for sent in (b"\x00\xff" * 500, head, head + body[:20], head + body, head + body + body):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
            if sent.endswith(body):
                connection.recv(10)
    deadline = time.monotonic() + 60
    while json.loads(get(port, "/health")[1])["in_flight"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert asked(port, "malt").choices[0].message.content is not None


def test_a_reader_that_does_not_read_holds_up_nobody(port):
    body = json.dumps({"model": "malt@3", "messages": USER, "stream": True, "n": 21}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(head + body)
        assert asked(port, "malt").choices[0].finish_reason in ("stop", "length")


def test_told_to_stop_it_finishes_what_has_begun_and_then_ends_with_143():
    process, port = start()
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(asked, port, "malt@3", f"e{n}+{n}=?") for n in range(8)]
        while not json.loads(get(port, "/health")[1])["in_flight"]:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
        answered = [f for f in futures if not f.exception()]
    assert process.returncode == 143 and "Traceback" not in err
    assert "the server has ended" in err and "same command" not in err
    assert answered, [f.exception() for f in futures]
    for future in futures:
        # What had not begun was refused in words, or never accepted.
        refused = openai.APIConnectionError | openai.InternalServerError
        assert future.exception() is None or isinstance(future.exception(), refused)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


# Limits, over an engine whose turns end when the test says so ------------------------------------


class Stub:
    """An answerer of one or two roles that says the question; a turn may wait for `gate`."""

    def __init__(self, between_chunks, roles=("generator", "refiner")):
        self.chain = Chain(tuple(Role(RoleConfig(name), "{question}") for name in roles))
        self.between_chunks = between_chunks
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.calls: list[tuple[str, int]] = []

    def params(self, role):
        return SamplingParams()

    def tokenizer(self, role):
        return SimpleNamespace(thoughts=None)

    def unread(self, question, roles):
        return [character for character in question if character == "€"]

    def check(self, question, params, said):
        assert list(params)[-1] == self.chain.roles[-1].name or len(params) == 1
        if question == "far too long":
            raise UserError("the prompt is far too long")

    def take_turn(self, role, draws, params, on_text=None):
        self.calls.append((role.name, len(draws)))
        self.entered.set()
        while not self.gate.wait(0.01):
            self.between_chunks()
            if on_text:
                on_text(0, "still here ")
        for index, draw in enumerate(draws):
            if draw.question == "broken":
                raise RuntimeError("a device fell over")
            if draw.question == "long":
                draw.error = UserError("the prompt is too long")
                continue
            if draw.question == "unreadable":
                draw.error = GraderFailed("the grader fell over")
                continue
            if on_text:
                on_text(index, "")
                on_text(index, draw.question)
            draw.turns.append(Turn(role.name, draw.question, 1, "eos", draw.question))


@contextmanager
def served(limits: Limits = Limits(), **more) -> Iterator[SimpleNamespace]:
    engine = Engine(Stub, Metrics())
    service = Service(engine, 0, "fp", limits, **more)
    plain = uvicorn.Server(uvicorn.Config(service.app(), port=0, log_level="error"))
    thread = threading.Thread(target=plain.run)
    thread.start()
    try:
        while not plain.started:
            time.sleep(0.01)
        port = plain.servers[0].sockets[0].getsockname()[1]
        yield SimpleNamespace(port=port, engine=engine, stub=engine.answerer)
    finally:
        engine.answerer.gate.set()
        plain.should_exit = True
        thread.join(30)
        engine.close(10)
    assert not thread.is_alive()


def test_a_grader_that_fails_is_not_the_clients_fault():
    with served() as here, pytest.raises(openai.InternalServerError) as failed:
        asked(here.port, "malt", "unreadable")
    assert failed.value.code == "grader_failed" and failed.value.status_code == 500


def test_a_client_that_does_not_read_a_whole_reply_is_left_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(exchange, "SENDING", 0.1)
    messages = [{"role": "user", "content": "long " * 9000}]
    body = json.dumps({"model": "malt", "n": 64, "messages": messages})
    head = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost",
            "Content-Type: application/json", f"Content-Length: {len(body)}")  # fmt: skip
    with served(Limits(seconds=3.0)) as here, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", here.port))
        client.sendall("\r\n".join([*head, "", body]).encode())
        deadline, counted = time.monotonic() + 30, ""
        while 'status="499"' not in counted and time.monotonic() < deadline:
            time.sleep(0.05)
            counted = get(here.port, "/metrics")[1]
        assert 'status="499"' in counted


def test_more_requests_than_allowed_are_told_to_come_back():
    with served(Limits(requests=2)) as here, ThreadPoolExecutor(2) as threads:
        here.stub.gate.clear()
        begun = [threads.submit(asked, here.port, "malt", f"{n}") for n in range(2)]
        while json.loads(get(here.port, "/health")[1])["in_flight"] < 2:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError) as refused:
            asked(here.port, "malt")
        assert refused.value.response.headers["retry-after"] == "1"
        assert 'model="other",status="429"' in get(here.port, "/metrics")[1]
        here.stub.gate.set()
        assert [f.result().choices[0].message.content for f in begun] == ["0", "1"]
        assert asked(here.port, "malt", "again").choices[0].message.content == "again"


def test_a_request_that_takes_too_long_is_refused_and_its_call_is_ended():
    with served(Limits(seconds=0.3)) as here:
        here.stub.gate.clear()
        for stream in (False, True):
            with pytest.raises(openai.APIError, match="not answered within"):
                [*asked(here.port, "malt", stream=stream)]
        # The sampler was told to stop although its turn never ended by itself.
        here.stub.gate.set()
        assert asked(here.port, "malt", "next").choices[0].message.content == "next"


def test_waiting_requests_join_the_next_call_of_their_role():
    with served() as here, ThreadPoolExecutor(9) as threads:
        here.stub.gate.clear()
        first = threads.submit(asked, here.port, "malt", "first")
        assert here.stub.entered.wait(30)
        others = [threads.submit(asked, here.port, "malt", f"{n}") for n in range(6)]
        hot = threads.submit(asked, here.port, "malt", "hot", temperature=2.0)
        while here.engine.waiting < 7:
            time.sleep(0.01)
        here.stub.gate.set()
        assert [f.result().choices[0].message.content for f in others] == [*"012345"]
        assert first.result() and hot.result()
        # One alone, then all others of the same parameters together; the hot one by itself.
        assert here.stub.calls[0] == ("generator", 1)
        assert ("generator", 6) in here.stub.calls
        assert sum(count for role, count in here.stub.calls if role == "generator") == 8


def test_a_client_that_leaves_takes_no_further_turns():
    with served() as here:
        here.stub.gate.clear()
        with pytest.raises(openai.APITimeoutError):
            client(here.port, timeout=0.2).chat.completions.create(model="malt", messages=USER)
        while json.loads(get(here.port, "/health")[1])["in_flight"]:
            time.sleep(0.01)
        time.sleep(0.1)
        here.stub.gate.set()
        assert asked(here.port, "generator", "other").choices[0].message.content == "other"
        assert ("refiner", 1) not in here.stub.calls


def test_a_client_that_leaves_while_text_flows_is_noticed():
    with served() as here:
        here.stub.gate.clear()
        stream = asked(here.port, "malt", stream=True)
        assert [next(stream) for _ in range(3)]
        stream.close()
        ended = time.monotonic() + 20
        while json.loads(get(here.port, "/health")[1])["in_flight"] and time.monotonic() < ended:
            time.sleep(0.01)
        assert json.loads(get(here.port, "/health")[1])["in_flight"] == 0
        here.stub.gate.set()
        assert asked(here.port, "generator", "other").choices[0].message.content == "other"
        assert not [role for role, _ in here.stub.calls if role == "refiner"]


def test_a_stop_text_of_a_request_ends_no_thought():
    body = {"model": "malt", "messages": USER, "stop": ["\n\n"]}
    chain = Chain(tuple(Role(RoleConfig(name), "{question}") for name in ("generator", "refiner")))
    request = parse_request(json.dumps(body).encode(), chain, 0)
    form = WrittenThoughts("<think>", "</think>", False, str)
    answerer = SimpleNamespace(
        params=lambda role: SamplingParams(),
        tokenizer=lambda role: SimpleNamespace(thoughts=form),
    )
    first, last = (request.params(role, answerer) for role in chain.roles)
    assert last.stop == ("\n\n",) and last.thoughts is form
    assert first.stop == () and first.thoughts is None  # calls of one kind stay in one batch


def test_turns_that_are_written_side_by_side_follow_each_other_in_a_stream():
    turns, told = InOrder(), []
    for draw, role, text in (
        (0, "g", ""), (1, "g", ""), (0, "g", "a"), (1, "g", "x"), (0, "g", "b"), (1, "v", "y"),
        (1, "v", "z"), (0, "v", ""), (0, "r", "c"),
    ):  # fmt: skip
        told.append("".join(piece[2] for piece in turns.add(draw, role, text)))
    assert told == ["", "", "a", "", "b", "", "", "\n\nx\n\nyz", ""]
    assert [*turns.finish(1)] == [(0, "r", "\n\nc")]
    assert [*turns.add(0, "r", "d")] == [(0, "r", "d")] and [*turns.finish(0)] == []


def test_a_tie_and_what_the_model_cannot_read_are_told_and_only_where_they_are():
    with served() as here:
        turn = here.stub.take_turn

        def apart(role, draws, params, on_text=None):
            turn(role, draws, params, on_text)
            for draw in draws:
                if "tie" in draw.question:
                    draw.turns[-1] = replace(draw.turns[-1], answer=str(draw.number))

        here.stub.take_turn = apart
        for question, expected in (("1", set()), ("tie", {"tie"}), ("€ tie", {"tie", "unread"})):
            [whole] = asked(here.port, "malt@3", question).choices
            *_, end = asked(here.port, "malt@3", question, stream=True)
            for told in (whole.malt, end.choices[0].malt):
                assert told.keys() - {"prediction", "votes", "winner", "draws"} == expected
                assert told.get("tie", True) is True and told.get("unread", ["€"]) == ["€"]


def test_white_space_around_a_question_and_options_that_ask_for_nothing_are_taken():
    with served() as here:
        assert asked(here.port, "malt", " \n12\t ").choices[0].message.content == "12"
        body = {"model": "malt", "messages": [{"role": "user", "content": "12"}]}
        body |= {"best_of": 1, "chat_template_kwargs": {}, "stream_options": None}
        assert post(here.port, body)[0] == 200
        nothing = {"include_usage": False, "include_obfuscation": False}
        assert [*asked(here.port, "malt", stream=True, stream_options=nothing)]


def test_a_question_that_is_too_long_never_reaches_the_engine():
    with served() as here:
        with pytest.raises(openai.BadRequestError, match="far too long") as refused:
            asked(here.port, "malt", "far too long", stream=True)
        assert refused.value.code == "context_length_exceeded" and not here.stub.calls


def test_a_failure_ends_its_own_call_only():
    with served() as here:
        with pytest.raises(openai.InternalServerError, match="sampling has failed"):
            asked(here.port, "malt", "broken")
        with pytest.raises(openai.BadRequestError, match="too long") as refused:
            asked(here.port, "malt", "long")
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.APIError, match="too long"):
            [*asked(here.port, "malt", "long", stream=True)]
        assert asked(here.port, "malt", "fine").choices[0].message.content == "fine"
        _, text = get(here.port, "/metrics")
        assert 'malt_requests_total{model="malt",status="500"} 1' in text
        assert 'malt_requests_total{model="malt",status="400"} 2' in text
        assert "malt_requests_in_flight 0" in text and "malt_up 1" in text


def test_a_key_is_asked_for_everywhere_but_for_health():
    with served(api_key="secret") as here:
        for path in ("/v1/models", "/metrics"):
            assert get(here.port, path)[0] == 401
        assert get(here.port, "/health")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            asked(here.port, "malt")
        mine = client(here.port, api_key="secret")
        reply = mine.chat.completions.create(model="malt", messages=USER)
        assert reply.choices[0].message.content == "e1+1=?"


def test_a_key_is_compared_as_it_was_sent_and_its_scheme_in_any_case():
    key = "schlüssel"
    with served(api_key=key) as here:
        for scheme, status in (("Bearer", 200), ("bearer", 200), ("Basic", 401), ("", 401)):
            with socket.create_connection(("127.0.0.1", here.port), timeout=10) as connection:
                head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: "
                connection.sendall(head + f"{scheme} {key}".strip().encode() + b"\r\n\r\n")
                assert int(connection.recv(1 << 16).split()[1]) == status, scheme


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:80", 200),
        ("127.0.0.1:80@evil.example", 403),
        ("evil.example:127.0.0.1", 403),
        ("localhost/evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_machine_are_served_on_it(host, status):
    with served() as here:
        connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
        connection.putrequest("GET", "/v1/models", skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        assert connection.getresponse().status == status


def test_a_failure_of_the_server_itself_is_an_error_object():
    with served() as here:
        here.engine.metrics.text = lambda: 1 / 0
        status, body = get(here.port, "/metrics")
        assert status == 500 and json.loads(body)["error"]["code"] == "internal_error"


def test_a_closing_engine_refuses_and_reports_unhealthy():
    with served() as here:
        here.engine.close(5)
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            asked(here.port, "malt")
        assert get(here.port, "/health")[0] == 503


@contextmanager
def process(monkeypatch, grace: float) -> Iterator[SimpleNamespace]:
    """The server as the command runs it, in a thread; `told` stands for SIGTERM."""
    told, ready = threading.Event(), threading.Event()
    monkeypatch.setattr(server, "signal_received", told.is_set)
    engine = Engine(Stub, Metrics())
    service = Service(engine, 0, "fp", Limits())
    listener = server.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(
        target=lambda: server.serve(
            service, engine, listener, grace=grace, on_ready=ready.set
        )
    )  # fmt: skip
    thread.start()
    assert ready.wait(30)
    try:
        yield SimpleNamespace(port=port, engine=engine, stub=engine.answerer, told=told)
    finally:
        told.set()
        engine.answerer.gate.set()
        thread.join(30)
    assert not thread.is_alive()


def test_answers_that_outlast_the_grace_are_refused_with_503(monkeypatch):
    with process(monkeypatch, grace=0) as here, ThreadPoolExecutor(3) as threads:
        here.stub.between_chunks = lambda: None  # a device that cannot be interrupted
        here.stub.gate.clear()
        futures = [threads.submit(asked, here.port, "malt", f"{n}") for n in range(3)]
        while json.loads(get(here.port, "/health")[1])["in_flight"] < 3:
            time.sleep(0.01)
        here.told.set()
        for future in futures:
            with pytest.raises(openai.InternalServerError, match="shutting down") as refused:
                future.result(30)
            assert refused.value.status_code == 503


def test_an_event_after_the_loop_has_ended_is_dropped(monkeypatch):
    with process(monkeypatch, grace=0) as here:
        here.stub.between_chunks = lambda: None
        here.stub.gate.clear()
        body = json.dumps({"model": "malt", "messages": USER}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection = socket.create_connection(("127.0.0.1", here.port))
        connection.sendall(head + body)
        assert here.stub.entered.wait(30)
        [job] = here.engine._current
    connection.close()
    job.ticket.notify("the loop is closed")


def test_a_connection_that_sends_no_whole_request_is_closed(monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    with process(monkeypatch, grace=1) as here:
        for sent in (b"", b"GET /health HTTP/1.1\r\nHost: lo"):
            with socket.create_connection(("127.0.0.1", here.port), timeout=10) as connection:
                connection.sendall(sent)
                assert connection.recv(10) == b""
        # One that is being answered is left alone, and so is what follows in time.
        here.stub.gate.clear()
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(asked, here.port, "malt", "slow")
            time.sleep(0.8)
            here.stub.gate.set()
            assert slow.result().choices[0].message.content == "slow"
        with socket.create_connection(("127.0.0.1", here.port), timeout=10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = connection.recv(1 << 16)
            while not answer.endswith(b"}"):  # head and body may come in two pieces
                answer += connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET /hea")
            assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--port", "70000"], "--port: found 70000"),
        (["--max-requests", "0"], "--max-requests: found 0"),
        (["--timeout", "0"], "--timeout: found 0"),
    ],
)
def test_a_server_that_could_not_be_meant_is_refused(words, message, capsys):
    run = str(cli_run.trained())
    assert cli.main(["serve", "--run", run, "--trust-task-code", "--quiet", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        words = ["--run", str(cli_run.trained()), "--trust-task-code", "--quiet", "--port", taken]
        assert cli.main(["serve", *words]) == 2
    assert f"port {taken} cannot be listened on" in capsys.readouterr().err
