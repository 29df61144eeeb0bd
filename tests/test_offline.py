"""Nothing asks the network unless a hub name, a tracker or an upload was asked for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import cli_run
from malt_jax import cli

OUTSIDE = (socket.AF_INET, socket.AF_INET6)


def test_no_socket_is_connected_or_name_looked_up_in_a_whole_run(tmp_path, monkeypatch):
    asked = []
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in OUTSIDE:
            asked.append(address)
            raise OSError("the network is cut")
        return connect(self, address)

    def looked_up(*arguments, **_):
        asked.append(arguments)
        raise OSError("the network is cut")

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    assert cli.main(["run", *cli_run.flags()[:-1], str(tmp_path / "run")]) == 0
    assert asked == []


def test_a_whole_run_in_a_process_without_a_network(tmp_path):
    """In a network namespace of its own, where not even the machine itself can be reached."""
    cut = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*cut, "true"], capture_output=True).returncode != 0:
        pytest.skip("may not make a network namespace")
    command = [sys.executable, "-m", "malt_jax.cli", "run", *cli_run.flags()[:-1]]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*cut, *command, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/report.html").exists()


def test_a_hub_name_is_the_only_thing_that_asks(tmp_path, monkeypatch, capsys):
    asked = []

    def looked_up(*arguments, **_):
        asked.append(arguments[0])
        raise OSError("the network is cut")

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    flags = ["run", *cli_run.flags()[:-1], str(tmp_path / "run"), "--model.path", "org/model"]
    assert cli.main(flags) == 2
    assert "org/model: could not be downloaded from the hub" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
