"""JSON objects that carry a hash of their own content, so that any flipped bit is detected.

The hash is the last key, `seal`, and covers everything before it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

KEY = "seal"


def encode(data: dict[str, Any]) -> bytes:
    """The object and its seal as indented ASCII JSON; raises ValueError for NaN and infinity."""
    # A seal from an earlier `decode` is dropped, so that `encode(decode(raw))` gives `raw` again.
    content = {key: value for key, value in data.items() if key != KEY}
    # The hash covers the JSON on one line, and the file holds the same content indented.
    body = json.dumps(content, ensure_ascii=True, allow_nan=False).encode()
    sealed = {**content, KEY: hashlib.sha256(body).hexdigest()}
    return json.dumps(sealed, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def decode(raw: bytes) -> dict[str, Any]:
    """The object with its seal; raises ValueError for bytes that `encode` did not write."""
    try:
        data = json.loads(raw)
        # Comparing bytes also detects a flip in white space, which the parser would ignore.
        intact = isinstance(data, dict) and raw == encode(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not intact:
        raise ValueError("its content does not match its own hash")
    return data
