"""A stand-in for the hub's API on this machine: repositories are created, and commits are kept."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants


def _address(place: str) -> str:
    """Where the hub's client expects a repository: models have no prefix."""
    return f"https://huggingface.co/{place.removeprefix('models/')}"


class Hub:
    """What was uploaded: a folder per repository, `models/ORG/NAME` or `datasets/ORG/NAME`."""

    def __init__(self, root: Path):
        self.root = root
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.refuses = ""
        """A part of the names that may not be written to."""
        self.refusal = 403
        """The status of such a refusal."""

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            place = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
            # Newer clients say `visibility` in place of `private`.
            private = asked.get("visibility") == "private" or asked.get("private", False)
            self.private.setdefault(place, private)
            return 200, {"url": _address(place)}
        found = re.fullmatch(
            r"/api/((?:models|datasets)/[^/]+/[^/]+)/(preupload|commit)/main", path
        )
        if not found or found[1] not in self.private:
            return 404, {"error": path}
        if self.refuses and self.refuses in path:
            return self.refusal, {"error": "you may not write here"}
        if found[2] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False}
                                   for f in files]}  # fmt: skip
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                file = self.root / found[1] / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        self.commits.append(found[1])
        return 200, {"commitUrl": f"{_address(found[1])}/commit/1", "commitOid": "1"}


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """The hub's client talks to a stand-in while this is open."""
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            path = self.path.partition("?")[0]
            status, reply = hub.answer(path, self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", "hf_stand_in")
        huggingface_hub.close_session()
        try:
            yield hub
        finally:
            huggingface_hub.close_session()
            server.shutdown()
            server.server_close()
