"""The page of a run that is still going on, served on this machine and renewed as files change.

Nothing is written into the run, whose only writer is the command that makes it. The page is built
in a temporary folder, at most for a fifth of the time, and asks every two seconds what is new.

Data is written as scripts, and a browser lets any page run the scripts of another server. They are
therefore at an address that only the page itself knows. Every version has a new one, so that a page
that was loaded earlier is never shown the data of a later one.
"""

from __future__ import annotations

import functools
import json
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from malt_jax.errors import UserError
from malt_jax.evaluation.transfer import Column
from malt_jax.report.build import compose
from malt_jax.report.drawing import Gallery
from malt_jax.report.page import render
from malt_jax.storage import manifest

HOST = "127.0.0.1"
PAUSE = 4.0
"""Time without building after each page, in times that the page took."""
DATA = "data/"
"""What the addresses of all data begin with."""
LEAST_PAUSE = 2.0
"""Seconds between two looks at the files."""
WATCHED = ("*.json", "*.jsonl", "rounds/*/*/*.jsonl", "rounds/*/*/*/*.jsonl", "eval/*.jsonl",
           "eval/trees/*.jsonl", "evals/*/results.json")  # fmt: skip
"""The files that the page is made of."""


class Live:
    """The newest page of a run, and what the run is doing."""

    def __init__(self, run: Path, evaluations: Callable[[], Sequence[Column]]):
        self._run, self._evaluations = run, evaluations
        self._seen: object = None
        self.version, self.text = 0, b""
        self.data: dict[str, bytes] = {}
        """The newest page's data by address."""
        self.problem = ""

    def renew(self) -> None:
        """Builds the page again if a file of the run has changed since the last time."""
        seen = [(path, s.st_size, s.st_mtime_ns) for path in _files(self._run)
                if (s := _stat(path))]  # fmt: skip
        if seen == self._seen:
            return
        address = f"{DATA}{secrets.token_urlsafe(16)}/"
        try:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                text, beside = compose(
                    self._run, place, Gallery(), {}, self._evaluations(), live=address
                )
                scripts = place.glob("*.js") if beside else ()
                data = {f"/{address}{path.name}": path.read_bytes() for path in scripts}
            self.problem = ""
        except (UserError, OSError) as error:
            # A line that is just being written, or a run that has nothing to show yet.
            self.problem = str(error)
            if self.version:
                return
            text, data = render("waiting.html.j2", name=self._run.name, live=True), {}
        self.text, self.data, self._seen = text.encode(), data, seen if not self.problem else None
        self.version += 1

    def state(self) -> dict[str, Any]:
        """What the open page asks for: its newest version, finished stages, the last log line."""
        stages = manifest.load(self._run)["stages"]
        last = _last_line(self._run / "metrics.jsonl")
        return {
            "version": self.version,
            "done": [name for name, stage in stages.items() if stage["done"]],
            "open": [name for name, stage in stages.items() if not stage["done"]],
            "last": last,
            "age": None if last is None else round(time.time() - last.get("time", 0.0)),
            "trees": sum(
                _lines(path, path.stat().st_size)
                for path in self._run.glob("rounds/*/trees/*.jsonl")
            ),
        }


def serve(
    run: Path,
    port: int,
    *,
    evaluations: Callable[[], Sequence[Column]],
    stopped: Callable[[], bool],
    on_ready: Callable[[str], None],
) -> None:
    """Serves the live page of `run` on 127.0.0.1 until `stopped` says so."""
    live = Live(run, evaluations)
    live.renew()
    try:
        server = ThreadingHTTPServer((HOST, port), _handler(live))
    except OSError as error:
        raise UserError(
            f"--port: {port} cannot be listened on ({error}); choose another."
        ) from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        on_ready(f"http://{HOST}:{server.server_port}/")
        wait = LEAST_PAUSE
        while not stopped():
            # Short naps, so that a stop is noticed at once.
            time.sleep(0.1)
            wait -= 0.1
            if wait <= 0:
                began = time.monotonic()
                live.renew()
                wait = max(LEAST_PAUSE, PAUSE * (time.monotonic() - began))
    finally:
        server.shutdown()
        server.server_close()


def _handler(live: Live) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A foreign page whose name was made to point here must not read the run.
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if host not in (HOST, "localhost"):
                self.send_error(403, "not a name of this machine")
                return
            if self.path == "/":
                self._send(live.text, "text/html; charset=utf-8")
            elif self.path == "/state":
                try:
                    state = live.state()
                except (UserError, OSError) as error:  # a file is being replaced
                    self.send_error(503, type(error).__name__)
                    return
                self._send(json.dumps(state).encode(), "application/json")
            elif script := live.data.get(self.path):
                self._send(script, "text/javascript")
            elif self.path.startswith(f"/{DATA}"):
                self.send_error(404, "The run has more by now: reload the page")
            else:
                self.send_error(404)

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged: there is one every two seconds."""

    return Handler


def _files(run: Path) -> list[Path]:
    return sorted(path for pattern in WATCHED for path in run.glob(pattern))


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:  # replaced in this moment
        return None


@functools.lru_cache(maxsize=1 << 16)
def _lines(path: Path, size: int) -> int:
    """Lines of a file that only grows, which is read again only when its size has changed."""
    with open(path, "rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _last_line(path: Path) -> dict[str, Any] | None:
    """The last whole line of a JSONL file, read from its end."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().split(b"\n")[:-1]
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
