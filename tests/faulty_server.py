"""Object stores on this machine (S3 by moto, GCS by gcp-storage-emulator) behind a faulty network.

`store("s3")` starts a server and a proxy before it. The proxy hands requests on, except those that
`Faults` spoils: server errors, throttling, connections that hang or break, uploads of which only a
part arrives, credentials that have expired.
"""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

# gcsfs would ask for the kind of bucket by gRPC, which the emulator does not speak.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

KINDS = ("error", "throttle", "hang", "break", "torn", "expired")
HANG = 1.5
"""Seconds for which a request hangs; the clients below give up after 1."""
S3_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
ANSWERS = {
    "error": (500, "InternalError", "We encountered an internal error."),
    "throttle": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
}


@dataclass
class Faults:
    """Which requests are spoiled: `share` of them, each by one of `kinds`."""

    kinds: tuple[str, ...] = ()
    share: float = 0.0
    only: str = ""
    """Spoil only requests with this in their path."""
    generator: random.Random = field(default_factory=lambda: random.Random(0))
    injected: Counter = field(default_factory=Counter)

    def choose(self, path: str, uploads: bool) -> str | None:
        if not self.kinds or self.only not in path or self.generator.random() >= self.share:
            return None
        kind = self.generator.choice(self.kinds)
        if kind == "torn" and not uploads:
            return None
        self.injected[kind] += 1
        return kind


def proxy(upstream: tuple[str, int], faults: Faults) -> ThreadingHTTPServer:
    """A server that hands requests on to `upstream`, except those that are spoiled."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = faults.choose(self.path, self.command in ("PUT", "POST") and len(body) > 1)
            if fault == "hang":
                time.sleep(HANG)
            if fault in ("hang", "break"):
                self.close_connection = True
                return
            if fault in ANSWERS:
                status, code, message = ANSWERS[fault]
                if self.path.startswith(("/storage/", "/upload/", "/download/")):  # GCS
                    status = 401 if fault == "expired" else 429 if fault == "throttle" else status
                self.answer(status, [], S3_ERROR.format(code, message).encode())
                return
            if fault == "torn":
                body = body[: len(body) // 2]
            onward = http.client.HTTPConnection(*upstream, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "content-length"}
            if fault == "torn":  # the store is to believe that this is all
                headers = {
                    k: v
                    for k, v in headers.items()
                    if not k.lower().startswith(("x-amz-checksum", "x-amz-decoded", "content-md5"))
                }
            onward.request(self.command, self.path, body or None, headers)
            answer = onward.getresponse()
            self.answer(answer.status, answer.getheaders(), answer.read())
            onward.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    if name.lower() == "content-length" and self.command != "HEAD":
                        continue
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = respond

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextmanager
def store(kind: str, faults: Faults) -> Iterator[tuple[str, dict[str, dict]]]:
    """A server of `s3` or `gs` with an empty bucket: its URL, and the fsspec config to reach it."""
    if kind == "s3":
        pytest.importorskip("s3fs")
        moto = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
        moto.start()
        address, stop = moto.get_host_and_port(), moto.stop
    else:
        pytest.importorskip("gcsfs")
        server = pytest.importorskip("gcp_storage_emulator.server")
        emulator = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
        emulator.start()
        address, stop = emulator._api._httpd.server_address[:2], emulator.stop
    before = proxy(address, faults)
    url = f"http://127.0.0.1:{before.server_address[1]}"
    if kind == "s3":
        limits = {"connect_timeout": 1, "read_timeout": 1, "retries": {"max_attempts": 1}}
        conf = {"endpoint_url": url, "key": "test", "secret": "test", "config_kwargs": limits}
        fsspec.filesystem("s3", **conf).makedirs("bucket", exist_ok=True)
    else:
        conf = {"endpoint_url": url, "token": "anon", "timeout": 1}
    try:
        yield f"{kind}://bucket/run", {kind: conf}
    finally:
        before.shutdown()
        stop()
