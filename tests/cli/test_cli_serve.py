"""`ppd serve`: bad settings are one line. What it answers, `tests/serve` has."""

import socket
from pathlib import Path

from tests.cli.helpers import Run, fails


def test_what_it_cannot_listen_on_is_one_line(run: Run, tinypy_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fails(run("serve", tinypy_bundle, "--port", taken.getsockname()[1]), "cannot listen", "--port")
    fails(run("serve", tinypy_bundle, "--host", "192.0.2.1"), "cannot listen")
    fails(run("serve", tinypy_bundle, "--slots", 0), "slots is 0")
