"""Fixtures: a bundle that chats, loaded and served."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from ppd import runtime
from tests.chats import chat_bundle
from tests.serve.servers import Server, held_by, serving


@pytest.fixture(scope="session")
def bundle(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_bundle(tinypy_bundle, tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="session")
def model(bundle: Path) -> runtime.Model:
    """The same bundle in this process, to compare with."""
    return runtime.load(bundle, threads=1)


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[Server]:
    with serving(bundle) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


@pytest.fixture(scope="session")
def hold_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture
def hold(hold_file: Path) -> Iterator[Path]:
    """A file that holds the answers of servers that were started with `held_by`, until it is removed."""
    hold_file.touch()
    yield hold_file
    hold_file.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def held_server(bundle: Path, hold_file: Path) -> Iterator[Server]:
    """Whose line has one place, where a request may wait longer than any test."""
    with serving(bundle, "--queue", 1, "--wait-seconds", 600, before=held_by(hold_file)) as running:
        yield running
