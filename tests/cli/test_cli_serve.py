"""`ppd serve`: bad settings are one line. What it answers, `tests/serve` has."""

import socket
from pathlib import Path

import pytest

from tests.cli.helpers import Run, fails


def test_what_it_cannot_listen_on_is_one_line(run: Run, tinypy_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fails(run("serve", tinypy_bundle, "--port", taken.getsockname()[1]), "cannot listen", "--port")
    fails(run("serve", tinypy_bundle, "--host", "192.0.2.1"), "cannot listen")
    fails(run("serve", tinypy_bundle, "--slots", 0), "slots is 0")


def test_a_key_of_the_environment_is_stripped_as_a_file_s_is(
    run: Run, tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPD_API_KEY", "secret\n")
    fails(run("serve", tinypy_bundle, "--host", "192.0.2.1"), "cannot listen")
    monkeypatch.setenv("PPD_API_KEY", " ")
    fails(run("serve", tinypy_bundle, "--host", "192.0.2.1"), "api_key", "not empty")
