"""Every parser of strangers' files accepts or refuses; scripts/fuzz.py looks longer."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import fuzz

MUTATED = 12
"""Inputs per target, beside those of earlier findings."""
SLOW = {
    "chat_template",
    "grader.latex",
}  # a process for each input: tests of their own are elsewhere


@pytest.mark.parametrize("name", [name for name in fuzz.TARGETS if name not in SLOW])
def test_broken_bytes_are_accepted_or_refused(name, tmp_path):
    if name == "gguf":
        pytest.importorskip("gguf")
    target, generator = fuzz.TARGETS[name], random.Random(name)
    feed, seeds = target.open(tmp_path)
    for seed in seeds:
        assert fuzz.attempt(target, feed, seed) is None
    for data in [*fuzz.kept(name), *(broken(seeds, generator) for _ in range(MUTATED))]:
        assert fuzz.attempt(target, feed, data) is None, data[:1000]


def broken(seeds: list[bytes], generator: random.Random) -> bytes:
    data = bytearray(generator.choice(seeds))
    for _ in range(generator.randint(1, 4)):
        at, length = generator.randrange(len(data) + 1), generator.randint(0, 12)
        data[at : at + length] = generator.choice(
            [b"", b"{", b"[]", b"null", b"-1", b"1e999", b"9" * 30, generator.randbytes(length)]
        )
    return bytes(data)


def test_a_finding_is_told_from_a_refusal(tmp_path):
    def fails(data: bytes) -> None:
        raise KeyError(data)

    assert fuzz.attempt(fuzz.TARGETS["config"], fails, b"") == "KeyError in elsewhere"
    quick = fuzz.Target(fuzz.manifests, seconds=0.1)
    assert fuzz.attempt(quick, lambda data: [0 for _ in iter(int, 1)], b"").startswith("TooSlow")
